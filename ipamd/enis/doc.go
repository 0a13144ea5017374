// Package enis knows the network interfaces of this instance: what IMDS and EC2 say of them and which link each of them
// is, and does the EC2 calls that give the node more or fewer of them. It decides neither how many there should be
// (ipamd/pool) nor who has an address (ipamd/store).
//
// The sources are late at times. An ENI that one source doesn't show any more frees nothing: it is only not used for
// new pods until it shows again.
package enis
