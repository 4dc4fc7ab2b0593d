package xdp

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Veth is the host's end of a veth whose other end is in another network namespace.
type Veth struct {
	Index int
	Name  string
	// Bridge is the name of the bridge that it is a port of, "" when of none.
	Bridge string
	// NsID is the id of the other end's namespace.
	NsID int
}

// Veths are the veths of this network namespace by the namespace id (nsid) of their other ends.
type Veths map[int][]Veth

// ErrOwnNamespace is returned for a container that lives in the host's network namespace: no device is its own.
var ErrOwnNamespace = errors.New("lives in the host's own network namespace")

// Veths are those whose peers are in other namespaces.
func (links Links) Veths() Veths {
	names := map[int]string{}
	for _, l := range links {
		names[l.index] = l.name
	}
	out := Veths{}
	for _, l := range links {
		if l.kind == "veth" && l.nsid >= 0 {
			out[l.nsid] = append(out[l.nsid], Veth{Index: l.index, Name: l.name, Bridge: names[l.master], NsID: l.nsid})
		}
	}
	return out
}

// At is the veth with a number, wherever its other end is by now; false where there is none.
func (v Veths) At(ifindex int) (Veth, bool) {
	for _, veths := range v {
		for _, veth := range veths {
			if veth.Index == ifindex {
				return veth, true
			}
		}
	}
	return Veth{}, false
}

// With are the veths whose other ends are in the namespace with an id.
func (v Veths) With(nsid int) []Veth { return v[nsid] }

// In are the host's ends of the veths of the network namespace at path, a SandboxKey or /proc/PID/ns/net. It is
// the kernel that pairs them (RTM_GETNSID against IFLA_LINK_NETNSID), not names or numbers that a
// container could forge, and no thread enters the namespace. ErrOwnNamespace: path is the namespace of
// this process.
func (v Veths) In(path string) ([]Veth, error) {
	ns, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if err := checkNamespace(ns); err != nil {
		return nil, err
	}
	nsid, err := nsidOf(ns)
	if err != nil {
		return nil, fmt.Errorf("namespace id of %s: %w", path, err)
	}
	if nsid < 0 {
		return nil, nil // no device of ours has its peer there
	}
	return v[nsid], nil
}

// checkNamespace refuses what is no namespace, such as the plain file over which Docker mounts one, and the one
// that this thread is in.
func checkNamespace(ns *os.File) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(ns.Fd()), &fs); err != nil {
		return err
	}
	if fs.Type != unix.NSFS_MAGIC {
		return fmt.Errorf("%s is not a namespace; in a container, mount its directory with rslave", ns.Name())
	}
	var there, here unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &there); err != nil {
		return err
	}
	if err := unix.Stat("/proc/thread-self/ns/net", &here); err != nil {
		return err
	}
	if there.Ino == here.Ino && there.Dev == here.Dev {
		return ErrOwnNamespace
	}
	return nil
}
