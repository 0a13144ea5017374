#!/bin/sh
# Reads table welcome again and again over new connections and prints the rows, or why it could not. Around each try it
# shows that the rest of the network works: the database's name resolves and an allowed port answers.
#
# PGHOST, PGUSER, PGPASSWORD, PGDATABASE as for psql; ALLOWED=HOST:PORT is a port that every pod may reach; INTERVAL
# and PGCONNECT_TIMEOUT in seconds.
: "${PGHOST:?name of the database server}"
export PGCONNECT_TIMEOUT="${PGCONNECT_TIMEOUT:-5}" PGAPPNAME="${PGAPPNAME:-${HOSTNAME:-welcome}}"
trap 'exit 0' TERM INT

while :; do
	now=$(date -u +%Y-%m-%dT%H:%M:%SZ)
	if answer=$(timeout 5 nslookup -type=a "$PGHOST" 2>&1); then
		echo "$now name $PGHOST: resolved"
	else
		echo "$now name $PGHOST: not resolved: $(echo $answer)"
	fi
	if [ -n "${ALLOWED:-}" ]; then
		# With -e, nc runs a program once it is connected: so its end says whether it was.
		if answer=$(timeout 5 nc -w 4 "${ALLOWED%:*}" "${ALLOWED##*:}" -e true 2>&1); then
			echo "$now port $ALLOWED: connected"
		else
			echo "$now port $ALLOWED: not connected: $answer"
		fi
	fi
	if answer=$(psql --no-psqlrc --no-password --tuples-only --no-align --command 'SELECT * FROM welcome' 2>&1); then
		echo "$now rows of welcome:"
		echo "$answer"
	else
		echo "$now no rows: $answer"
	fi
	# In the background, so that a signal ends the wait.
	sleep "${INTERVAL:-5}" &
	wait $!
done
