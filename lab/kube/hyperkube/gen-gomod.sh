#!/usr/bin/env bash
# Writes go.mod and go.sum for one version of Kubernetes:  ./gen-gomod.sh v1.34.4
# k8s.io/kubernetes replaces its staging modules by folders of its own tree; outside of it they need their tagged versions.
set -euo pipefail
cd "$(dirname "$0")"
version=${1:?version of k8s.io/kubernetes, such as v1.34.4}
staging=v0.${version#v1.}
export GOFLAGS=-mod=mod
upstream=$(go mod download -json "k8s.io/kubernetes@$version" | sed -n 's/.*"GoMod": "\(.*\)",/\1/p')
{
  echo "module github.com/branchline-cni/branchline/lab/kube/hyperkube"; echo
  sed -n 's/^go \(.*\)/go \1/p' "$upstream"; echo
  sed -n '/^godebug/p' "$upstream"; echo
  echo "require ("
  echo "	k8s.io/kubernetes $version"
  grep -E '^\s+go.etcd.io/etcd/server/v3 ' "$upstream" | sed 's, // indirect,,'
  echo ")"; echo
  echo "replace ("
  sed -n "s,^\s*\(k8s.io/[a-z-]*\) => ./staging/.*,	\1 => \1 $staging,p" "$upstream"
  echo ")"
} > go.mod
rm -f go.sum
go mod tidy
