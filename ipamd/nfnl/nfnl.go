// Package nfnl asks nf_tables for its tables, as all do who take some of them away: hostnet this agent's own, takeover
// another's. What is in them is the callers'.
package nfnl

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/google/nftables"
)

// Tables connects to nf_tables in the current network namespace and lists its tables: none where this kernel has no nf_tables.
// Close the connection with its CloseLasting.
func Tables() (*nftables.Conn, []*nftables.Table, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, nil, fmt.Errorf("open a netlink socket for nftables: %w", err)
	}
	tables, err := conn.ListTables()
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EPROTONOSUPPORT) || errors.Is(err, syscall.EINVAL) {
		return conn, nil, nil
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("list the tables of nftables: %w", err), conn.CloseLasting())
	}
	return conn, tables, nil
}
