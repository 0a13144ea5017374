package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Disk is what the store needs of a file system. It is an interface so that tests can stop the machine between any two
// of its steps.
type Disk interface {
	ReadFile(name string) ([]byte, error)
	// WriteSynced creates or truncates the file, writes it whole and syncs it.
	WriteSynced(name string, b []byte) error
	Rename(from, to string) error
	SyncDir(name string) error
}

// OS is the real file system.
type OS struct{}

// ReadFile reads a whole file.
func (OS) ReadFile(name string) ([]byte, error) { return os.ReadFile(name) }

// WriteSynced writes a file and syncs it.
func (OS) WriteSynced(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Rename moves a file over another.
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// SyncDir makes renames in a directory durable.
func (OS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func save(d Disk, path string, s *state) error {
	b, err := encode(s)
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := d.WriteSynced(tmp, b); err != nil {
		return fmt.Errorf("write %s: %w", tmp, err)
	}
	if err := d.Rename(tmp, path); err != nil {
		return fmt.Errorf("put %s in place: %w", path, err)
	}
	if err := d.SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("sync the directory of %s: %w", path, err)
	}
	return nil
}
