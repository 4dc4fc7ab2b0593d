// Package article holds the two programs of the article that this project grew from ("Load XDP programs
// using the ip (iproute2) command", 2018), as source and as the plain objects that
// `clang -O2 -target bpf -c` makes of them: no debug information and so no BTF, which is what
// `vethwall attach` and xdp.program have to load. The package has no code.
package article

// Debian keeps <asm/types.h> in a directory of the machine's architecture. The types are the same in
// all of them, so that the objects are, too.
//
//go:generate sh -c "clang-16 -O2 -target bpf -I/usr/include/${DOLLAR}(uname -m)-linux-gnu -c dropper.c -o dropper.o"
//go:generate sh -c "clang-16 -O2 -target bpf -I/usr/include/${DOLLAR}(uname -m)-linux-gnu -c udp.c -o udp.o"
