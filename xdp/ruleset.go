package xdp

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// ruleset is the hold in nftables, a table of the bridge family:
//
//	set known           interfaces that may send
//	set guarded         those that may send what tc ingress has marked (see Hold.Guard)
//	set alive0, alive1  one element that every packet has, for deadMan
//	chain prerouting {
//		iif @known accept
//		iif @guarded jump guarded
//		iifname "veth" and seven letters: jump held
//	}
//	chain guarded {
//		ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop
//		meta mark & guardMark == 0 counter drop
//		meta mark set meta mark & ~guardMark
//		accept
//	}
//	chain held {
//		ARP, neighbour discovery, MLD reports that stay on the link and have no room for data: accept
//		meta iiftype @alive0 counter drop
//		meta iiftype @alive1 counter drop
//	}
//
// The name is what Docker gives the host's end of every veth, and what tells such a port from those of
// other programs' bridges (meta ibrname, which would say it better, is missing in some kernels).
//
// Whoever refreshes fills the two alive sets in turn, so that at any instant one of them matches: an element
// that is replaced in one transaction can be missed by a packet that is judged meanwhile.
type ruleset struct {
	conn             *nftables.Conn // nil until it is needed
	table            *nftables.Table
	known, guarded   *nftables.Set
	alive            [2]*nftables.Set
	turn             int
	prerouting, held *nftables.Chain
	guard            *nftables.Chain
}

// deadMan is how long the hold outlives its last refresh.
const deadMan = 5 * time.Second

// guardMark is GUARD_MARK of bpf/tc.c.
const guardMark = 0x80000000

// What is behind ARP in the shortest frame, and a solicitation or advertisement with one option, as in bpf/packet.h.
const (
	arpPadding     = 18
	ipv6Header     = 40
	discoveryUsual = 32
)

// The number of rules by chain, by which a ruleset is known to be whole.
const (
	rulesPrerouting = 3
	rulesGuard      = 4
	rulesHeld       = 6
)

// tableOf names the table of the agent that pins under dir, so that two agents share none.
func tableOf(dir string) *nftables.Table {
	name := "vethwall"
	if dir != DefaultDir {
		name = fmt.Sprintf("vethwall-%x", sha256.Sum256([]byte(dir)))[:len("vethwall-")+8]
	}
	return &nftables.Table{Name: name, Family: nftables.TableFamilyBridge}
}

func newRuleset(dir string) *ruleset {
	t := tableOf(dir)
	r := &ruleset{
		table: t, held: &nftables.Chain{Table: t, Name: "held"}, guard: &nftables.Chain{Table: t, Name: "guarded"},
		known:   &nftables.Set{Table: t, Name: "known", KeyType: nftables.TypeIFIndex, KeyByteOrder: binaryutil.NativeEndian},
		guarded: &nftables.Set{Table: t, Name: "guarded", KeyType: nftables.TypeIFIndex, KeyByteOrder: binaryutil.NativeEndian},
	}
	for i, name := range []string{"alive0", "alive1"} {
		r.alive[i] = &nftables.Set{Table: t, Name: name, KeyType: iifType, KeyByteOrder: binaryutil.NativeEndian, HasTimeout: true}
	}
	accept := nftables.ChainPolicyAccept
	r.prerouting = &nftables.Chain{
		Table: t, Name: "prerouting", Type: nftables.ChainTypeFilter, Policy: &accept,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	}
	return r
}

// Types that the library does not name, with the numbers by which nft(8) knows them.
var (
	iifType  = dataType("iface_type", 2, 21)
	byteType = dataType("integer", 1, 4)
)

func dataType(name string, size, number uint32) nftables.SetDatatype {
	t := nftables.SetDatatype{Name: name, Bytes: size}
	t.SetNFTMagic(number)
	return t
}

// change makes what f asks for in one transaction. The socket stays open: the kernel keeps whoever closes one waiting
// for what was deleted before, some 8 ms.
func (r *ruleset) change(f func(*nftables.Conn) error) error {
	return r.ask(func(c *nftables.Conn) error {
		if err := f(c); err != nil {
			return err
		}
		return c.Flush()
	})
}

func (r *ruleset) ask(f func(*nftables.Conn) error) error {
	if r.conn == nil {
		c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(largeBatches))
		if err != nil {
			return err
		}
		r.conn = c
	}
	err := f(r.conn)
	if err != nil {
		r.close() // answers may be left in it
	}
	return err
}

// largeBatches makes room for a transaction of thousands of ports.
func largeBatches[C interface{ SetWriteBuffer(int) error }](socket C) error {
	return socket.SetWriteBuffer(receiveBuffer)
}

func (r *ruleset) close() {
	if r.conn != nil {
		_ = r.conn.CloseLasting()
		r.conn = nil
	}
}

// install puts the whole table in the place of what is there, in one step.
func (r *ruleset) install(known, guarded []int) error {
	err := r.change(func(c *nftables.Conn) error {
		c.AddTable(r.table) // so that there is one to delete
		c.DelTable(r.table)
		return r.build(c, known, guarded)
	})
	if err != nil {
		return fmt.Errorf("install the nftables table bridge %s: %w", r.table.Name, err)
	}
	return nil
}

// try says why the kernel would refuse the table. It takes it back in the same transaction.
func (r *ruleset) try() error {
	return r.change(func(c *nftables.Conn) error {
		err := r.build(c, nil, nil)
		c.DelTable(r.table)
		return err
	})
}

func (r *ruleset) build(c *nftables.Conn, known, guarded []int) error {
	c.AddTable(r.table)
	for _, s := range []*nftables.Set{r.known, r.guarded, r.alive[0], r.alive[1]} {
		s.ID = 0 // was that of an earlier transaction
		if err := c.AddSet(s, nil); err != nil {
			return err
		}
	}
	c.AddChain(r.prerouting)
	c.AddChain(r.guard)
	c.AddChain(r.held)
	return errors.Join(r.addRules(c), add(c, r.known, known), add(c, r.guarded, guarded), r.renew(c))
}

// perMessage is how many elements one message of netlink has room for.
const perMessage = 1000

func add(c *nftables.Conn, s *nftables.Set, ifindexes []int) error {
	for some := range slices.Chunk(ifindexes, perMessage) {
		if err := c.SetAddElements(s, elements(some)); err != nil {
			return err
		}
	}
	return nil
}

// take takes elements out of a set, which has them.
func take(c *nftables.Conn, s *nftables.Set, ifindexes []int) error {
	for some := range slices.Chunk(ifindexes, perMessage) {
		if err := c.SetDeleteElements(s, elements(some)); err != nil {
			return err
		}
	}
	return nil
}

// renew fills the one of the two alive sets that has the older element.
func (r *ruleset) renew(c *nftables.Conn) error {
	r.turn = 1 - r.turn
	c.FlushSet(r.alive[r.turn])
	ether := binaryutil.NativeEndian.PutUint16(unix.ARPHRD_ETHER)
	return c.SetAddElements(r.alive[r.turn], []nftables.SetElement{{Key: ether, Timeout: deadMan}})
}

// refresh lets the hold go on for deadMan from now, and releases ports.
func (r *ruleset) refresh(known, guarded []int) error {
	return r.change(func(c *nftables.Conn) error {
		return errors.Join(add(c, r.known, known), add(c, r.guarded, guarded), r.renew(c))
	})
}

// release lets ports send, the guarded ones what is marked.
func (r *ruleset) release(known, guarded []int) error {
	return r.change(func(c *nftables.Conn) error { return errors.Join(add(c, r.known, known), add(c, r.guarded, guarded)) })
}

// forget takes out interfaces, which must be in the sets.
func (r *ruleset) forget(known, guarded []int) error {
	return r.change(func(c *nftables.Conn) error { return errors.Join(take(c, r.known, known), take(c, r.guarded, guarded)) })
}

// whole reports whether the kernel has the table with all its rules.
func (r *ruleset) whole() bool {
	for chain, want := range map[*nftables.Chain]int{r.prerouting: rulesPrerouting, r.guard: rulesGuard, r.held: rulesHeld} {
		if rules, err := r.rules(chain); err != nil || len(rules) != want {
			return false
		}
	}
	return true
}

func (r *ruleset) rules(chain *nftables.Chain) (out []*nftables.Rule, err error) {
	err = r.ask(func(c *nftables.Conn) (err error) {
		out, err = c.GetRules(r.table, chain)
		return err
	})
	return out, err
}

// read returns what is in force: the interfaces that may send, which of them are guarded, and for how long yet the rules hold without a refresh, 0
// where they do not.
func (r *ruleset) read() (known, guarded []int, left time.Duration, err error) {
	var found [4][]nftables.SetElement
	err = r.ask(func(c *nftables.Conn) (err error) {
		for i, s := range []*nftables.Set{r.known, r.guarded, r.alive[0], r.alive[1]} {
			if found[i], err = c.GetSetElements(s); err != nil {
				return fmt.Errorf("read the nftables table bridge %s: %w", r.table.Name, err)
			}
		}
		return nil
	})
	guarded = interfaces(found[1])
	known = append(interfaces(found[0]), guarded...)
	for _, e := range slices.Concat(found[2], found[3]) {
		left = max(left, e.Expires)
	}
	return known, guarded, left, err
}

func interfaces(elements []nftables.SetElement) (out []int) {
	for _, e := range elements {
		out = append(out, int(binaryutil.NativeEndian.Uint32(e.Key)))
	}
	return out
}

// dropped is how many packets the rules of a chain have dropped since they were installed.
func (r *ruleset) dropped(chain *nftables.Chain) (n uint64) {
	rules, _ := r.rules(chain)
	for _, rule := range rules {
		for _, e := range rule.Exprs {
			if counter, ok := e.(*expr.Counter); ok {
				n += counter.Packets
			}
		}
	}
	return n
}

// remove takes the table out of the kernel; that there is none is no error.
func (r *ruleset) remove() error {
	defer r.close()
	err := r.change(func(c *nftables.Conn) error {
		c.AddTable(r.table)
		c.DelTable(r.table)
		return nil
	})
	if err != nil && !noBridgeFamily(err) {
		return fmt.Errorf("remove the nftables table bridge %s: %w", r.table.Name, err)
	}
	return nil
}

// noBridgeFamily reports whether err says that the kernel has no nftables, or none for bridges.
func noBridgeFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL)
}

func elements(ifindexes []int) (out []nftables.SetElement) {
	for _, i := range ifindexes {
		out = append(out, nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(uint32(i))})
	}
	return out
}

// addRules adds the rules of both chains, whose sets have been added in the same transaction. They are written as nft(8)
// writes them, so that it can read again what it lists.
func (r *ruleset) addRules(c *nftables.Conn) error {
	reports := &nftables.Set{Table: r.table, Anonymous: true, Constant: true, KeyType: byteType}
	err := c.AddSet(reports, bytesOf(131, 132, 143)) // of MLD versions 1 and 2
	rule := func(chain *nftables.Chain, parts ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: r.table, Chain: chain, Exprs: slices.Concat(parts...)})
	}
	accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	countedDrop := []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
	const ip, icmp = expr.PayloadBaseNetworkHeader, expr.PayloadBaseTransportHeader
	rule(r.prerouting, in(&expr.Meta{Key: expr.MetaKeyIIF, Register: 1}, r.known), accept)
	rule(r.prerouting, in(&expr.Meta{Key: expr.MetaKeyIIF, Register: 1}, r.guarded), []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: r.guard.Name}})
	rule(r.prerouting, dockersName(), []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: r.held.Name}})
	rule(r.held, etherType(unix.ETH_P_ARP), noLongerThan(28+arpPadding), accept)
	// To ff02::/16 and fe80::/16, which nobody routes: one more option, of 8 bytes, is all that they have.
	for _, near := range [][]byte{{0xff, 0x02}, {0xfe, 0x80}} {
		// Router and neighbour solicitations, neighbour advertisements. Such a set belongs to one rule.
		discovery := &nftables.Set{Table: r.table, Anonymous: true, Constant: true, KeyType: nftables.TypeICMP6Type}
		err = errors.Join(err, c.AddSet(discovery, bytesOf(133, 135, 136)))
		rule(r.held, etherType(unix.ETH_P_IPV6), is(at(ip, 6), unix.IPPROTO_ICMPV6), is(at(ip, 7), 255), is(two(ip, 24), near...),
			noLongerThan(ipv6Header+discoveryUsual), []expr.Any{two(ip, 4), &expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{0, discoveryUsual}}}, in(at(icmp, 0), discovery), accept)
	}
	// The first byte of the length, hop limit, destination and length of the options: a report of fewer than 256 bytes that nobody routes.
	rule(r.held, etherType(unix.ETH_P_IPV6), is(at(ip, 4), 0), is(at(ip, 6), unix.IPPROTO_HOPOPTS), is(at(ip, 7), 1), is(at(ip, 24), 0xff),
		noLongerThan(ipv6Header+0xff), is(at(ip, 40), unix.IPPROTO_ICMPV6), is(at(ip, 41), 0), in(at(ip, 48), reports), accept)
	rule(r.guard, toBridge(), []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}})
	rule(r.guard, mark(guardMark), []expr.Any{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)}}, countedDrop)
	rule(r.guard, mark(^uint32(guardMark)), []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}})
	rule(r.guard, accept)
	for _, s := range r.alive {
		rule(r.held, in(&expr.Meta{Key: expr.MetaKeyIIFTYPE, Register: 1}, s), countedDrop)
	}
	return err
}

// in matches what load gives when s has it, is when it is value.
func in(load expr.Any, s *nftables.Set) []expr.Any {
	return []expr.Any{load, &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}}
}

func is(load expr.Any, value ...byte) []expr.Any {
	return []expr.Any{load, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value}}
}

// toBridge matches the group addresses that IEEE 802.1D keeps for bridges.
func toBridge() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Len: 6},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 6, Mask: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xf0}, Xor: make([]byte, 6)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x01, 0x80, 0xc2, 0, 0, 0}},
	}
}

// mark loads the bits of a packet's mark that are in mask.
func mark(mask uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
	}
}

func etherType(t uint16) []expr.Any {
	return is(&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1}, binaryutil.BigEndian.PutUint16(t)...)
}

// at loads a byte of a header, two loads two.
func at(base expr.PayloadBase, offset uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: 1}
}

func two(base expr.PayloadBase, offset uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: 2}
}

// noLongerThan matches packets of at most so many bytes behind the Ethernet header.
func noLongerThan(bytes uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyLEN, Register: 1},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: binaryutil.BigEndian.PutUint32(bytes)},
	}
}

// dockersName matches "veth" and seven lower case hex digits, which have the bit 0x20 in common. The mask is made of
// letters, so that nft(8) can read again what it lists: ~ takes all but the lowest bit.
func dockersName() []expr.Any {
	mask, want := make([]byte, unix.IFNAMSIZ), make([]byte, unix.IFNAMSIZ)
	copy(mask, "~~~~       ~")
	copy(want, "vdth       ")
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: unix.IFNAMSIZ, Mask: mask, Xor: make([]byte, unix.IFNAMSIZ)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: want},
	}
}

func bytesOf(values ...byte) (out []nftables.SetElement) {
	for _, b := range values {
		out = append(out, nftables.SetElement{Key: []byte{b}})
	}
	return out
}
