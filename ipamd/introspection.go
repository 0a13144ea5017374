package ipamd

import (
	"context"
	"errors"
	"maps"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/branchline-cni/branchline/ipamd/introspect"
	"github.com/branchline-cni/branchline/rpc/introspection"
)

// views are what the agent shows of itself.
func (a *Agent) views() introspect.Views {
	network, others := a.opt.Config.Settings()
	return introspect.Views{
		introspect.ViewENIs: func() any {
			a.mu.Lock()
			held := maps.Clone(a.orphans)
			a.mu.Unlock()
			return introspect.OfENIs(a.inventory.ENIs(), a.store.View(), held, a.opt.Config.CoolDown)
		},
		introspect.ViewPods:         func() any { return introspect.OfPods(a.store.View()) },
		introspect.ViewNetworkUtils: func() any { return network },
		introspect.ViewIPAMD:        func() any { return others },
	}
}

// introspectionService shows the views on the agent's socket.
type introspectionService struct {
	introspection.UnimplementedIntrospectionServer
	views introspect.Views
}

// View implements introspection.IntrospectionServer.
func (s introspectionService) View(_ context.Context, in *introspection.ViewRequest) (*introspection.ViewReply, error) {
	if in.GetName() == "" {
		return &introspection.ViewReply{Names: s.views.Names()}, nil
	}
	b, err := s.views.JSON(in.GetName())
	var none introspect.ErrNoView
	switch {
	case errors.As(err, &none):
		return nil, status.Error(codes.NotFound, err.Error())
	case err != nil:
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &introspection.ViewReply{Json: b}, nil
}
