/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
#pragma once

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include <bpf/bpf_endian.h>

#include "reason.h"

/* docs/packets.md says how a frame is read, and policy/frame.go is the same in Go. */

#define MAX_VLAN_TAGS 2
#define ND_USUAL 32 /* bytes of a neighbour solicitation or advertisement with one option */
#define MAX_EXTENSION_HEADERS 8
#define NEXTHDR_MOBILITY 135
#define NEXTHDR_HIP 139
#define NEXTHDR_SHIM6 140
#define PROTO_SCTP 132
#define SCTP_HEADER 12
/* Where the checksums stand in their headers (RFC 9293, RFC 768, RFC 9260). */
#define TCP_CHECKSUM 16
#define UDP_CHECKSUM 6
#define SCTP_CHECKSUM 8

/* linux/icmp.h would pull in the C library. */
#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_SOURCE_QUENCH 4
#define ICMP_REDIRECT 5
#define ICMP_ECHO 8
#define ICMP_ROUTER_ADVERT 9 /* RFC 1256 */
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

/* RFC 4861 */
#define ND_ROUTER_SOLICIT 133
#define ND_ROUTER_ADVERT 134
#define ND_NEIGHBOR_SOLICIT 135
#define ND_NEIGHBOR_ADVERT 136
#define ND_REDIRECT 137
#define ND_SOURCE_ADDRESS 1 /* options: link-layer addresses */
#define ND_TARGET_ADDRESS 2
#define ND_NONCE 14 /* RFC 3971: of duplicate address detection (RFC 7527) */

/* RFC 2131, RFC 8415 */
#define DHCP_SERVER 67
#define DHCP_CLIENT 68
#define DHCP6_CLIENT 546

/*
 * A service key stands for what a packet asks for, in one 32-bit number, so that one tree finds it:
 *   proto << 16 | destination port      TCP, UDP, SCTP
 *   proto << 16 | type                  ICMP in IPv4, ICMPv6 in IPv6
 *   proto << 16 | SERVICE_NONE          ICMP in IPv6, ICMPv6 in IPv4
 *   proto << 16                         every other protocol
 * and for what could not be read, to which user space compiles what holds whatever the truth is:
 *   SERVICE_UNKNOWN4 | proto            only the service is unknown, IPv4
 *   SERVICE_UNKNOWN6 | proto            the same, IPv6
 *   PROTO_UNKNOWN4, PROTO_UNKNOWN6      protocol and service are
 *   IP_UNKNOWN                          an IP packet, peer unknown too
 *   ALL_UNKNOWN                         not even whether it is IP
 * and NOT_IP for what is known not to be.
 */
#define SERVICE_NONE 0xffff
#define SERVICE_UNKNOWN4 0x1000000
#define SERVICE_UNKNOWN6 0x1000100
#define PROTO_UNKNOWN4 0x1000200
#define PROTO_UNKNOWN6 0x1000201
#define IP_UNKNOWN 0x1000202
#define ALL_UNKNOWN 0x1000203
#define NOT_IP 0x1000204

enum direction { EGRESS, INGRESS }; /* what the container sends, and what it receives */

struct packet {
	__u32 service; /* service key of what the sender asks for */
	__u32 reverse; /* service key if it answers instead; TCP, UDP and SCTP only, else service */
	__u32 src[4]; /* host byte order; IPv4 in [0] */
	union {
		__u32 dst[4];
		__u32 claim[4]; /* where claims is set: an address that is the sender's, he says */
	};
	__u32 id; /* of the packet that this is a fragment of */
	__u32 part_from; /* what this fragment has of it, in bytes; */
	__u32 part_to; /* exclusive */
	__u32 quote; /* where the quote of an ICMP error begins, and where it ends at the latest, */
	__u32 limit; /* in bytes from the begin of the frame */
	__u32 headers; /* bytes up to the payload of TCP or UDP, which each segment repeats; else 0 */
	__u64 mac; /* the source, in the low 48 bits as it stands in the frame */
	__u32 tcp_number; /* of a SYN its sequence number, of other TCP the acknowledgment number */
	__u32 segments; /* packets on the wire, at tc only */
	__u32 bytes; /* their layer 2 bytes */
	__u16 sport; /* host byte order; of an ICMP echo the identifier, of other ICMP 0 */
	__u16 dport; /* of an ICMP echo 0, of other ICMP the type */
	__u16 transport; /* where its transport header begins, in bytes from the begin of the frame; 0 is not known */
	__u8 family; /* 4, 6, or 0 when there are no addresses */
	__u8 proto;
	__u8 direction;
	__u8 reason; /* why something is unknown, else REASON_PASS */
	__u8 builtin; /* ARP, neighbour discovery or MLD as they should be: no rule applies */
	__u8 tcp_flags;
	__u8 echo; /* an ICMP echo: ECHO_REQUEST or ECHO_REPLY */
	__u8 fragment; /* FIRST_FRAGMENT or LATER_FRAGMENT */
	__u8 part_proto; /* in IPv6 of the first header that is fragmented */
	__u8 quotes; /* an ICMP error; where it is TURNED all else here is of the packet that it quotes, turned round */
	__u8 claims; /* the family of claim, 0 for none */
	__u8 forged; /* what no container has to send: antispoof drops it, wherever it is from */
};

enum { ECHO_REQUEST = 1, ECHO_REPLY };
enum { FIRST_FRAGMENT = 1, LATER_FRAGMENT };
enum { QUOTES = 1, TURNED };
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/*
 * Reads forward, as far as the data go and as the packet says that it goes: limit is where it
 * ends, in bytes from data. The verifier believes only the comparison with end.
 */
struct cursor {
	void *data;
	void *end;
	void *pos;
	__u32 limit;
};

/* In bytes from data. Clang must not see through it: the verifier refuses what it would make of it. */
static __always_inline __u64 offset(const struct cursor *c)
{
	__u64 n = c->pos - c->data;

	asm("" : "+r"(n));
	return n;
}

static __always_inline void *take(struct cursor *c, __u32 size)
{
	void *p = c->pos;

	if (offset(c) + size > c->limit || p + size > c->end)
		return NULL;
	c->pos = p + size;
	return p;
}

/*
 * Makes the verifier forget how the cursor came to where it is, so that it follows what comes next
 * once, and not once for every way there. No chain of headers that is walked reaches MAX_OFFSET.
 */
#define MAX_OFFSET 0x9000

static __always_inline int settle(struct cursor *c)
{
	__u64 n = offset(c);

	if (n > MAX_OFFSET)
		return 0;
	c->pos = c->data + n;
	return 1;
}

static __always_inline void unknown(struct packet *p, __u32 service, enum reason why)
{
	p->service = service;
	p->reason = why;
}

static __always_inline void unknown_service(struct packet *p, __u8 proto, enum reason why)
{
	unknown(p, (p->family == 4 ? SERVICE_UNKNOWN4 : SERVICE_UNKNOWN6) | proto, why);
}

static __always_inline void unknown_proto(struct packet *p, enum reason why)
{
	unknown(p, p->family == 4 ? PROTO_UNKNOWN4 : PROTO_UNKNOWN6, why);
}

/* Errors quote the packet that they are about (RFC 792; RFC 4443 section 2.1). */
static __always_inline int is_icmp_error(const struct packet *p, __u8 type)
{
	if (p->family == 6)
		return type < 128;
	return type == ICMP_DEST_UNREACH || type == ICMP_SOURCE_QUENCH || type == ICMP_REDIRECT ||
	       type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
}

/* What diverts all that its receiver sends: router advertisements and redirects. */
static __always_inline int is_routers_type(const struct packet *p, __u16 type)
{
	return p->family == 4 ? type == ICMP_REDIRECT || type == ICMP_ROUTER_ADVERT :
				type == ND_ROUTER_ADVERT || type == ND_REDIRECT;
}

/* Whether the headers are a packet's own or those of one that an ICMP error quotes. */
enum reading {
	READ_FRAME,
	READ_QUOTE,
};

static __always_inline void read_icmp(struct packet *p, __u8 proto, const __u8 *icmp, int whole)
{
	__u8 type = icmp[0];
	__u8 request = p->family == 4 ? ICMP_ECHO : ICMPV6_ECHO_REQUEST;
	__u8 reply = p->family == 4 ? ICMP_ECHOREPLY : ICMPV6_ECHO_REPLY;

	p->service = p->reverse = (__u32)proto << 16 | type;
	p->quotes = is_icmp_error(p, type);
	p->forged |= is_routers_type(p, type);
	p->dport = type;
	if (type == request || type == reply) {
		p->echo = type == request ? ECHO_REQUEST : ECHO_REPLY;
		p->dport = 0;
		/* An ICMPv6 header may end before the identifier; all such are one conversation. */
		if (whole)
			p->sport = bpf_ntohs(*(__be16 *)(icmp + 4));
	}
}

static __always_inline void read_ports(struct packet *p, __u8 proto, const __be16 *ports)
{
	p->sport = bpf_ntohs(ports[0]);
	p->dport = bpf_ntohs(ports[1]);
	p->service = (__u32)proto << 16 | p->dport;
	p->reverse = (__u32)proto << 16 | p->sport;
}

/*
 * The service of the packet whose transport header stands at the cursor, which ends with the packet.
 * short_reason is why a header may be incomplete. A quote needs no more than the ports.
 */
static __always_inline void read_transport(struct cursor *c, struct packet *p, __u8 proto,
					   enum reason short_reason, enum reading r)
{
	__u8 *header;

	p->proto = proto;
	p->transport = offset(c);
	if (proto == IPPROTO_TCP) {
		header = take(c, r == READ_QUOTE ? 4 : 20);
		if (header && r == READ_FRAME) {
			if (header[12] >> 4 < 5)
				return unknown_service(p, proto, REASON_BAD_HEADER);
			p->tcp_flags = header[13];
			p->tcp_number =
				bpf_ntohl(*(__be32 *)(header + (p->tcp_flags & TCP_SYN ? 4 : 8)));
			p->headers = offset(c) - 20 + (header[12] >> 4) * 4;
		}
		if (header)
			return read_ports(p, proto, (__be16 *)header);
	} else if (proto == IPPROTO_UDP) {
		header = take(c, r == READ_QUOTE ? 4 : 8);
		if (header) {
			read_ports(p, proto, (__be16 *)header);
			p->headers = offset(c);
			/* Clients take answers from any port. */
			p->forged = p->dport == (p->family == 4 ? DHCP_CLIENT : DHCP6_CLIENT);
			return;
		}
	} else if (proto == PROTO_SCTP) {
		header = take(c, r == READ_QUOTE ? 4 : SCTP_HEADER);
		if (header)
			return read_ports(p, proto, (__be16 *)header);
	} else if ((p->family == 4 && proto == IPPROTO_ICMP) ||
		   (p->family == 6 && proto == IPPROTO_ICMPV6)) {
		header = take(c, 4);
		if (header) {
			__u8 *rest = take(c, 4);

			if (rest)
				return read_icmp(p, proto, header, 1);
			if (p->family == 6 || r == READ_QUOTE)
				return read_icmp(p, proto, header, 0);
		}
	} else {
		int icmp = proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6;

		p->service = p->reverse = (__u32)proto << 16 | (icmp ? SERVICE_NONE : 0);
		return;
	}
	unknown_service(p, proto, short_reason);
}

/* RFC 791. The cursor stands at the header; afterwards it ends where the packet does. */
static __always_inline void read_ipv4(struct cursor *c, struct packet *p, enum reading r)
{
	struct iphdr *ip = take(c, sizeof(*ip));
	__u32 header, total, left, fragment;

	p->family = 4;
	if (!ip)
		return unknown(p, IP_UNKNOWN, REASON_TRUNCATED);
	header = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || header < sizeof(*ip) || total < header)
		return unknown(p, IP_UNKNOWN, REASON_BAD_HEADER);
	left = c->limit - offset(c) + sizeof(*ip);
	if (r == READ_FRAME && total > left)
		return unknown(p, IP_UNKNOWN, REASON_TRUNCATED);
	if (total < left)
		c->limit -= left - total;
	if (!take(c, header - sizeof(*ip)))
		return unknown(p, IP_UNKNOWN, REASON_TRUNCATED);

	p->src[0] = bpf_ntohl(ip->saddr);
	p->dst[0] = bpf_ntohl(ip->daddr);
	p->proto = ip->protocol;
	fragment = bpf_ntohs(ip->frag_off);
	p->id = ip->id;
	p->part_proto = ip->protocol;
	p->part_from = (fragment & 0x1fff) * 8;
	p->part_to = p->part_from + total - header;
	if (fragment & 0x1fff) {
		p->fragment = LATER_FRAGMENT;
		return unknown_service(p, ip->protocol, REASON_FRAGMENT);
	}
	if (fragment & 0x2000)
		p->fragment = FIRST_FRAGMENT;
	read_transport(c, p, ip->protocol, fragment & 0x2000 ? REASON_FRAGMENT : REASON_TRUNCATED,
		       r);
}

/*
 * Whether RFC 8200 and its kin call it an extension header that can be walked: 0, 43, 44, 60 and 135, 139,
 * 140. As bits, because the verifier follows each comparison both ways in each round of the walk.
 */
static __always_inline int is_extension(__u8 proto)
{
	const __u64 low = 1ULL << IPPROTO_HOPOPTS | 1ULL << IPPROTO_ROUTING |
			  1ULL << IPPROTO_FRAGMENT | 1ULL << IPPROTO_DSTOPTS;
	const __u64 high = 1ULL << (NEXTHDR_MOBILITY - 128) | 1ULL << (NEXTHDR_HIP - 128) |
			   1ULL << (NEXTHDR_SHIM6 - 128);

	return (proto < 64 ? low : proto >= 128 && proto < 192 ? high : 0) >> (proto & 63) & 1;
}

/*
 * Neighbour discovery (RFC 4861: hop limit 255) and MLD (RFC 2710, RFC 3810: hop limit 1) are what makes
 * IPv6 work at all, so no rule applies. Only where they stay on the link: a peer or destination of
 * link scope, or, for a solicitation or advertisement of the usual size, one with the source's first 64
 * bits: who forges his source can still send as much past a closed policy. The type stands in p afterwards.
 */
static __always_inline int is_builtin6(const struct ipv6hdr *ip, struct cursor c, struct packet *p)
{
	enum direction d = p->direction;
	const __u8 *peer = d == EGRESS ? ip->daddr.s6_addr : ip->saddr.s6_addr;
	const __u8 *dst = ip->daddr.s6_addr;
	const __u8 *icmp = take(&c, 4);
	__u8 type;

	if (!icmp)
		return 0;
	p->dport = type = icmp[0];
	if (type >= 133 && type <= 136)
		/* A container is no router: its advertisements (134) are judged. */
		return !(d == EGRESS && type == 134) && icmp[1] == 0 && ip->hop_limit == 255 &&
		       ((peer[0] == 0xfe && (peer[1] & 0xc0) == 0x80) ||
			(dst[0] == 0xff && dst[1] == 0x02) ||
			(type >= 135 && c.limit - offset(&c) <= ND_USUAL - 4 &&
			 ip->daddr.s6_addr32[0] == ip->saddr.s6_addr32[0] &&
			 ip->daddr.s6_addr32[1] == ip->saddr.s6_addr32[1]));
	if ((type >= 130 && type <= 132) || type == 143)
		return ip->hop_limit == 1 && dst[0] == 0xff;
	return 0;
}

static __always_inline int is_zero(const __u32 *a)
{
	return !(a[0] | a[1] | a[2] | a[3]);
}

static __always_inline int same_address(const __u32 *a, const __u32 *b)
{
	return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]));
}

static __always_inline __u64 read_mac(const __u8 *mac)
{
	return *(__u32 *)mac | (__u64) * (__u16 *)(mac + 4) << 32;
}

/*
 * What neighbour discovery says of its sender, also where it is not built in: a router or another host may heed it all
 * the same. More than one option, or another than a host has to send, is forged: it would be room for data. So is
 * every fragment (RFC 6980): what the next one brings is not seen.
 */
static __always_inline void read_claims6(struct cursor c, struct packet *p, int extended)
{
	__u8 *icmp = take(&c, 4), *option;
	__u32 target[4], *at;

	if (!icmp || icmp[0] < ND_ROUTER_SOLICIT || icmp[0] > ND_NEIGHBOR_ADVERT)
		return;
	p->forged = icmp[0] == ND_ROUTER_ADVERT || p->fragment || extended;
	if (p->forged)
		return;
	if (!take(&c, 4)) {
		p->forged = p->builtin;
		return;
	}
	if (icmp[0] != ND_ROUTER_SOLICIT) {
		at = take(&c, 16);
		if (!at) {
			p->forged = 1;
			return;
		}
		for (int i = 0; i < 4; i++)
			target[i] = bpf_ntohl(at[i]);
		/* Who asks without an address of his own asks whether this one is free for him. */
		if (p->builtin && (icmp[0] == ND_NEIGHBOR_ADVERT || is_zero(p->src))) {
			p->claims = 6;
			for (int i = 0; i < 4; i++)
				p->claim[i] = target[i];
		} else if (icmp[0] == ND_NEIGHBOR_ADVERT) {
			/* There is room for a claim only where the destination is not asked for. */
			p->forged = !same_address(target, p->src);
		}
	}
	if (offset(&c) == c.limit)
		return;
	option = take(&c, 8);
	if (!option || offset(&c) != c.limit || option[1] != 1)
		p->forged = 1;
	else if (option[0] == ND_SOURCE_ADDRESS || option[0] == ND_TARGET_ADDRESS)
		p->forged |= read_mac(option + 2) != p->mac;
	else
		p->forged |= option[0] != ND_NONCE || !is_zero(p->src);
}

/* Behind ARP in the shortest Ethernet frame; more would be room for data. */
#define ARP_PADDING 18

/* RFC 826: Ethernet and IPv4, the only kind there is. */
static __always_inline void read_arp(struct cursor *c, struct packet *p)
{
	const __u8 *arp = take(c, 28);

	p->builtin = 1;
	p->forged = !arp || *(__be32 *)arp != bpf_htonl(0x00010800) || arp[4] != 6 || arp[5] != 4 ||
		    read_mac(arp + 8) != p->mac || c->limit - offset(c) > ARP_PADDING;
	if (!arp)
		return;
	/* A probe claims nothing yet (RFC 5227). */
	p->claim[0] = (__u32)arp[14] << 24 | arp[15] << 16 | arp[16] << 8 | arp[17];
	p->claims = p->claim[0] ? 4 : 0;
}

/* RFC 8200. The cursor stands at the header; afterwards it ends where the packet does. */
static __always_inline void read_ipv6(struct cursor *c, struct packet *p, enum reading r)
{
	struct ipv6hdr *ip = take(c, sizeof(*ip));
	enum reason short_reason = REASON_TRUNCATED;
	__u32 payload, left;
	__u64 first; /* offset of what stands behind the fixed header */
	__u8 proto;

	p->family = 6;
	if (!ip)
		return unknown(p, IP_UNKNOWN, REASON_TRUNCATED);
	if (ip->version != 6)
		return unknown(p, IP_UNKNOWN, REASON_BAD_HEADER);
	payload = bpf_ntohs(ip->payload_len);
	left = c->limit - offset(c);
	if (r == READ_FRAME && payload > left)
		return unknown(p, IP_UNKNOWN, REASON_TRUNCATED);
	if (payload < left) {
		c->limit -= left - payload;
		p->limit = 1; /* until all is read: something follows */
	}

	for (int i = 0; i < 4; i++) {
		p->src[i] = bpf_ntohl(ip->saddr.s6_addr32[i]);
		p->dst[i] = bpf_ntohl(ip->daddr.s6_addr32[i]);
	}

	proto = ip->nexthdr;
	first = offset(c);
	for (int i = 0; i <= MAX_EXTENSION_HEADERS && is_extension(proto); i++) {
		__u8 *ext = take(c, 8);

		if (i == MAX_EXTENSION_HEADERS)
			return unknown_proto(p, REASON_TOO_MANY_HEADERS);
		if (!ext)
			return unknown_proto(p, REASON_TRUNCATED);
		if (proto == IPPROTO_FRAGMENT) {
			__u32 fragment = bpf_ntohs(*(__be16 *)(ext + 2));

			proto = ext[0];
			p->id = *(__u32 *)(ext + 4);
			p->part_proto = proto;
			p->part_from = fragment & 0xfff8;
			p->part_to = p->part_from + c->limit - offset(c);
			if (fragment & 0xfff8) {
				p->fragment = LATER_FRAGMENT;
				p->proto = proto;
				if (is_extension(proto))
					return unknown_proto(p, REASON_FRAGMENT);
				return unknown_service(p, proto, REASON_FRAGMENT);
			}
			if (fragment & 1) {
				short_reason = REASON_FRAGMENT;
				p->fragment = FIRST_FRAGMENT;
			}
			if (!settle(c))
				return unknown_proto(p, REASON_TRUNCATED);
			continue;
		}
		proto = ext[0];
		if (!take(c, ext[1] * 8) || !settle(c))
			return unknown_proto(p, REASON_TRUNCATED);
	}
	if (r == READ_FRAME && proto == IPPROTO_ICMPV6) {
		p->builtin = !p->fragment && is_builtin6(ip, *c, p);
		if (p->direction == EGRESS)
			read_claims6(*c, p, offset(c) != first || p->limit);
		if (p->builtin) {
			p->proto = proto;
			return;
		}
	}
	read_transport(c, p, proto, short_reason, r);
}

/*
 * An ICMP error goes the way that the packet which it quotes came, so it is judged as that packet turned
 * round. Leaves p, with its own addresses, for one that cannot be.
 */
static __always_inline int turn_quote(void *data, void *end, struct packet *p)
{
	struct cursor c = { data, end, data, p->limit };
	struct packet q = {};

	if (p->quote > MAX_OFFSET)
		return 0;
	c.pos = data + p->quote;
	if (p->family == 4)
		read_ipv4(&c, &q, READ_QUOTE);
	else
		read_ipv6(&c, &q, READ_QUOTE);
	if (q.reason != REASON_PASS || q.quotes || !same_address(q.src, p->dst))
		return 0;
	p->proto = q.proto;
	p->service = q.reverse;
	p->reverse = q.service;
	p->sport = q.dport;
	p->dport = q.sport;
	if (q.echo) {
		/* A reply is about a request and the other way; the identifier is one and the same. */
		p->service = p->reverse = q.service ^ (q.family == 4 ? ICMP_ECHO : 1);
		p->echo = q.echo == ECHO_REQUEST ? ECHO_REPLY : ECHO_REQUEST;
		p->sport = q.sport;
		p->dport = 0;
	} else if (q.proto == IPPROTO_ICMP || q.proto == IPPROTO_ICMPV6) {
		p->sport = 0;
		p->dport = q.dport;
	}
	for (int i = 0; i < 4; i++)
		p->src[i] = q.dst[i];
	p->quotes = TURNED;
	return 1;
}

/* Reads a whole Ethernet frame of length bytes, of which those up to end can be read. */
static __always_inline void read_frame(void *data, void *end, __u32 length, enum direction d,
				       struct packet *p)
{
	struct cursor c = { data, end, data, length };
	struct ethhdr *eth = take(&c, sizeof(*eth));
	__be16 type;

	p->direction = d;
	if (!eth)
		return unknown(p, ALL_UNKNOWN, REASON_TRUNCATED);
	p->mac = read_mac(eth->h_source);
	type = eth->h_proto;
	for (int i = 0; i <= MAX_VLAN_TAGS; i++) {
		__be16 *tag;

		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;
		if (i == MAX_VLAN_TAGS)
			return unknown(p, ALL_UNKNOWN, REASON_TOO_MANY_TAGS);
		tag = take(&c, 4);
		if (!tag)
			return unknown(p, ALL_UNKNOWN, REASON_TRUNCATED);
		type = tag[1];
	}

	if (type == bpf_htons(ETH_P_IP)) {
		read_ipv4(&c, p, READ_FRAME);
	} else if (type == bpf_htons(ETH_P_IPV6)) {
		read_ipv6(&c, p, READ_FRAME);
	} else if (type == bpf_htons(ETH_P_ARP)) {
		read_arp(&c, p);
		return;
	} else {
		p->service = NOT_IP;
		return;
	}
	/* The header of an error is 8 bytes in both families. */
	p->quote = offset(&c);
	p->limit = c.limit;
}
