//go:build kernel

package eni

import (
	"os"
	"testing"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }
