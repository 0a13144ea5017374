// Package config reads the node agent's environment: every variable that a stock manifest of the DaemonSet may carry is
// known here, with its default and what is accepted. It decides nothing and reaches nothing: it turns text into a
// Config, or into errors that name the variable, its value and what is accepted, all of them at once.
//
// Variables is the table itself, exported so that the documentation can be checked against it.
package config
