package lab

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/branchline-cni/branchline/lab/instance"
)

// The database of the walk-through.
const (
	DatabaseUser = "walker"
	DatabaseName = "walkthrough"
	databaseHost = "db." + internalDomain
)

// DatabaseHost is the server's name in the VPC's DNS.
func (l *Lab) DatabaseHost() string { return databaseHost }

// DatabaseLog is PostgreSQL's own log.
func (l *Lab) DatabaseLog() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dbLog
}

// databaseScript makes and runs a PostgreSQL that logs every connection and asks for no password: here the security
// groups decide alone. It runs as nobody, as PostgreSQL refuses root; the folder for its socket is on a file system of
// its own, for the cache's folder may be closed to others.
const databaseScript = `set -eu
mkdir -p /run/pg
mount -t tmpfs -o mode=755 tmpfs /run/pg
mkdir /run/pg/tree /run/pg/data /run/pg/sock
mount --bind "$TREE" /run/pg/tree
chown 65534:65534 /run/pg/data /run/pg/sock
bin=/run/pg/tree/${BIN#"$TREE"/}
as="setpriv --reuid=65534 --regid=65534 --clear-groups env HOME=/run/pg LD_LIBRARY_PATH=$LIBS LC_ALL=C"
$as "$bin/initdb" -D /run/pg/data -U "$DBUSER" --auth=trust --encoding=UTF8 --locale=C --no-sync
echo "host all all all trust" >>/run/pg/data/pg_hba.conf
$as "$bin/postgres" --single -D /run/pg/data -c jit=off postgres <<SQL
CREATE DATABASE $DBNAME
SQL
exec $as "$bin/postgres" -D /run/pg/data -c listen_addresses='*' -c unix_socket_directories=/run/pg/sock \
  -c log_connections=on -c log_disconnections=on -c log_line_prefix='%m [%p] ' -c fsync=off -c jit=off -c timezone=UTC -c log_timezone=UTC
`

// Database launches an instance that runs PostgreSQL, with the given security groups on its ENI, and returns when the
// server accepts connections.
func (l *Lab) Database(ctx context.Context, groups ...string) (Machine, error) {
	m, host, err := l.launchHost(ctx, "database", hostType, DatabaseRole, groups...)
	if err != nil {
		return m, err
	}
	addresses := []netip.Addr{m.Address}
	if m.IPv6.IsValid() {
		addresses = append(addresses, m.IPv6)
	}
	l.name(databaseHost, addresses...)
	pg := l.parts.postgres
	libs := "/run/pg/tree/usr/lib/x86_64-linux-gnu:/run/pg/tree/lib/x86_64-linux-gnu"
	if _, err := host.Start(ctx, "postgresql", instance.Command{
		Argv: []string{"/bin/sh", "-c", databaseScript},
		Env:  []string{"TREE=" + pg.Dir, "BIN=" + pg.Bin, "LIBS=" + libs, "DBUSER=" + DatabaseUser, "DBNAME=" + DatabaseName},
		Dir:  "/",
	}); err != nil {
		return m, fmt.Errorf("start PostgreSQL on %s: %w", m.ID, err)
	}
	l.mu.Lock()
	l.dbLog = filepath.Join(l.stateDir(m.ID), "logs", "postgresql.log")
	l.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, fmt.Errorf("it did not accept connections within a minute; see %s", l.DatabaseLog()))
	defer cancel()
	for {
		r, err := l.Exec(ctx, m, l.Tool("psql"), "-X", "-h", "127.0.0.1", "-U", DatabaseUser, "-d", DatabaseName, "-c", "SELECT 1")
		if err == nil && r.ExitCode == 0 {
			return m, nil
		}
		select {
		case <-ctx.Done():
			return m, fmt.Errorf("wait for PostgreSQL on %s: %w: %s", m.ID, context.Cause(ctx), r.Stderr)
		case <-time.After(300 * time.Millisecond):
		}
	}
}
