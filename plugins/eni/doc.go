// Package eni holds the verbs of the CNI executable: what the runtime passes (configuration, CNI_ARGS, network
// namespace, earlier results), one question to the node agent, and what the runtime gets back (results, error codes).
//
// It is not the place for how a pod is wired (plugins/datapath) or who gets which address (ipamd).
package eni
