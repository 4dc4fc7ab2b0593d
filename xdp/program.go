package xdp

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"unique"

	"golang.org/x/sys/unix"
)

// DefaultPrograms is the program directory unless the user says otherwise.
const DefaultPrograms = "/etc/vethwall/programs"

// maxObject is how large an object in the program directory may be, in bytes.
const maxObject = 1 << 20

// Program is an XDP program of the operator's, as it was read from the program directory. The zero value is none.
// Equal programs are equal values, and share their memory.
type Program struct {
	Name    string // NAME[:SECTION], as it was asked for
	digest  digest
	content unique.Handle[string]
}

// digest tells programs apart by content and section.
type digest [sha256.Size]byte

func (p Program) section() string {
	_, section, _ := strings.Cut(p.Name, ":")
	return section
}

// ReadProgram reads the object NAME, or where there is none NAME.o, from the program directory, and looks whether it has
// a program, in SECTION if name says one. Whoever can write there decides what passes, so directory and file have to
// belong to root and be writable by nobody else, and no link leads out. It needs no kernel. The error is one line that
// says what to do; fs.ErrPermission holds for it where this user may not look.
func ReadProgram(dir, name string) (Program, error) {
	file, section, _ := strings.Cut(name, ":")
	content, err := readObject(dir, file)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("no file %s in %s; put the object there, or remove the label", file, dir)
	}
	if err == nil {
		_, _, err = parseObject(strings.NewReader(content), section)
	}
	if err != nil {
		return Program{}, fmt.Errorf("xdp.program=%s: %w", name, err)
	}
	return Program{name, sha256.Sum256([]byte(section + "\x00" + content)), unique.Make(content)}, nil
}

// Try lets the kernel look at a program. fs.ErrPermission holds for the error where this user may not ask.
func (p Program) Try() error {
	program, err := loadObject(strings.NewReader(p.content.Value()), p.section())
	if err != nil {
		return fmt.Errorf("xdp.program=%s: %w", p.Name, err)
	}
	return program.Close()
}

// readObject reads a file of the program directory.
func readObject(dir, name string) (string, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	info, err := root.Stat(".")
	if err != nil {
		return "", err
	}
	if err := onlyRoots(info); err != nil {
		return "", fmt.Errorf("%s %w", dir, err)
	}
	const flags = os.O_RDONLY | unix.O_NONBLOCK // a FIFO must not make us wait
	file, err := root.OpenFile(name, flags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		file, err = root.OpenFile(name+".o", flags, 0)
	}
	if err != nil {
		return "", err
	}
	defer file.Close()
	return readRegular(file)
}

func readRegular(file *os.File) (string, error) {
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a regular file", file.Name())
	}
	if err := onlyRoots(info); err != nil {
		return "", fmt.Errorf("%s %w", file.Name(), err)
	}
	content, err := io.ReadAll(io.LimitReader(file, maxObject+1))
	if err != nil {
		return "", err
	}
	if len(content) > maxObject {
		return "", fmt.Errorf("%s is larger than %d bytes", file.Name(), maxObject)
	}
	return string(content), nil
}

// onlyRoots refuses what somebody else than root could have written.
func onlyRoots(info fs.FileInfo) error {
	const groupAndOthers = 0o022
	if stat, ok := info.Sys().(*syscall.Stat_t); !ok || stat.Uid != 0 {
		return errors.New("does not belong to root: chown it to root")
	}
	if info.Mode()&groupAndOthers != 0 {
		return errors.New("can be written by others than root: chmod go-w it")
	}
	return nil
}
