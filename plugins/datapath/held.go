package datapath

import "context"

// HeldByAnother says whether one of the links of these names carries another sandbox's mark. The answer holds as long
// as the caller keeps the pod's lock.
func HeldByAnother(ctx context.Context, owner Owner, names []string) (bool, error) {
	k, err := openKernel(ctx, owner, -1)
	if err != nil {
		return false, err
	}
	defer k.close()
	for _, name := range names {
		o, err := k.observe(name, owner)
		if err != nil {
			return false, err
		}
		if o.holder == other {
			return true, nil
		}
	}
	return false, nil
}
