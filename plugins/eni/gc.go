package eni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/rpc"
)

// networkName is what the conflist's network is called wherever the rest of the cluster knows it.
const networkName = "aws-cni"

// gc removes from the host what is ours and of no valid attachment, then tells the agent which ones are valid. It goes on
// after an error and reports all.
func (o *operation) gc(ctx context.Context) error {
	if o.configErr != nil {
		return o.configErr
	}
	valid, said, err := parseAttachments(o.args.StdinData)
	if err != nil {
		return err
	}
	if !said {
		// Absence of the list is not absence of attachments.
		o.note("ignored", "the runtime does not say which attachments are valid")
		return nil
	}
	o.note("valid", len(valid))
	errs := []error{o.collect(ctx, valid)}
	client, err := rpc.Dial(o.config.Socket)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer client.Close()
	ask, cancel := context.WithTimeout(ctx, delDeadline)
	defer cancel()
	in := &rpc.GcRequest{Version: rpc.Version, NetworkName: o.config.Name}
	for _, v := range valid {
		in.Valid = append(in.Valid, &rpc.Attachment{ContainerId: v.ContainerID, IfName: v.IfName, NetworkName: o.config.Name})
	}
	if reply, err := client.Gc(ask, in); err != nil {
		// As with DEL: it finds out by itself what it does not hear.
		o.note("agentNotTold", messageOf(err))
	} else {
		o.note("freed", reply.GetFreed())
	}
	return errors.Join(errs...)
}

func (o *operation) collect(ctx context.Context, valid []datapath.Owner) error {
	if o.config.Name != networkName {
		// Marks don't name the network. This list says nothing of the pods of the node's own.
		o.note("kernel", fmt.Sprintf("left alone: the list is of network %q, not of %s", o.config.Name, networkName))
		return nil
	}
	lock, err := datapath.OpenLock(o.config.lockPath())
	if err != nil {
		return err
	}
	defer lock.Close()
	removed, err := datapath.Collect(ctx, lock, datapath.Valid(valid))
	o.note("removed", removed)
	return err
}

// parseAttachments reads the list of valid attachments: under the specification's key, and under the one that it had by
// mistake at first. Where both are there, what either names is valid. The library writes an empty list as null.
func parseAttachments(stdin []byte) (valid []datapath.Owner, said bool, err error) {
	var raw struct {
		Valid  json.RawMessage `json:"cni.dev/valid-attachments"`
		Former json.RawMessage `json:"cni.dev/attachments"`
	}
	if err := json.Unmarshal(stdin, &raw); err != nil {
		return nil, false, types.NewError(types.ErrDecodingFailure, "network configuration is not JSON: "+err.Error(), "")
	}
	seen := map[datapath.Owner]bool{}
	for _, l := range []struct {
		key  string
		text json.RawMessage
	}{{"cni.dev/valid-attachments", raw.Valid}, {"cni.dev/attachments", raw.Former}} {
		if l.text == nil {
			continue
		}
		var list []types.GCAttachment
		if err := json.Unmarshal(l.text, &list); err != nil {
			return nil, false, invalidConfig(l.key, "%v", err)
		}
		for _, a := range list {
			if a.ContainerID == "" || a.IfName == "" {
				// What it stands for would be taken for garbage.
				return nil, false, invalidConfig(l.key, "an attachment lacks its containerID or its ifname")
			}
			if o := (datapath.Owner{ContainerID: a.ContainerID, IfName: a.IfName}); !seen[o] {
				seen[o], valid = true, append(valid, o)
			}
		}
		said = true
	}
	return valid, said, nil
}
