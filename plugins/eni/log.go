package eni

import (
	"log/slog"

	"github.com/branchline-cni/branchline/plugins/oplog"
)

func openLog(c Config) (*slog.Logger, func()) { return oplog.Open("aws-cni", c.LogFile, c.LogLevel) }
