package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// maxSize bounds a file; one that is larger was not written by a person.
const maxSize = 1 << 20

// Read reads the agent's configuration from a file that only root, or the user of this process, can write. Where
// there is no file the error is fs.ErrNotExist; where mistakes are in it it is of type yamltree.Errors.
func Read(path string) (Config, error) {
	text, err := Load(path)
	if err != nil {
		return Config{}, err
	}
	return Parse(path, text)
}

// Load is the text of such a file.
func Load(path string) ([]byte, error) {
	// Without O_NONBLOCK a fifo would keep the agent waiting.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch owner := info.Sys().(*syscall.Stat_t).Uid; {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a file", path)
	case owner != 0 && int(owner) != os.Geteuid():
		return nil, fmt.Errorf("%s belongs to user %d, who could change it: chown root %s", path, owner, path)
	case info.Mode().Perm()&0o022 != 0:
		return nil, fmt.Errorf("%s can be written by others than its owner: chmod go-w %s", path, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err == nil && len(text) > maxSize {
		err = errors.New("larger than 1 MiB")
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return text, nil
}
