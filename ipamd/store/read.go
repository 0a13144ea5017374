package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Read returns what a store's file holds, without opening the store: for programs that run when no agent does. A file
// that isn't there holds nothing.
func Read(path string) ([]Allocation, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the file of allocations %s: %w", path, err)
	}
	s, err := decode(b)
	if err != nil {
		return nil, fmt.Errorf("read the file of allocations %s: %w", path, err)
	}
	return s.Allocations, nil
}
