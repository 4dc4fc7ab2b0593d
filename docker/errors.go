package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
)

// explain turns the failure of a first contact into one line that says what to do. The client library
// hides why a dial failed, so the dial is made once more to learn it.
func explain(ctx context.Context, a api, err error) error {
	host := a.DaemonHost()
	if ctx.Err() != nil {
		return fmt.Errorf("connect to Docker at %s: no answer: %w", host, ctx.Err())
	}
	if conn, dialErr := a.Dialer()(ctx); dialErr == nil {
		_ = conn.Close()
	} else {
		err = dialErr
	}
	path, isSocket := strings.CutPrefix(host, "unix://")
	switch {
	case isSocket && errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("connect to Docker: no socket at %s: start Docker, or set DOCKER_HOST to where it listens: %w", path, syscall.ENOENT)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("connect to Docker: no permission for %s: run as root or as a member of the socket's group: %w", path, syscall.EACCES)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("connect to Docker: nothing listens at %s: start Docker, or set DOCKER_HOST to where it listens: %w", host, syscall.ECONNREFUSED)
	}
	return &oneLine{fmt.Errorf("connect to Docker at %s: %w; check DOCKER_HOST", host, err)}
}

// oneLine is an error whose text keeps to one line, as some of the client library's do not.
type oneLine struct{ err error }

func (e *oneLine) Error() string { return strings.Join(strings.Fields(e.err.Error()), " ") }
func (e *oneLine) Unwrap() error { return e.err }
