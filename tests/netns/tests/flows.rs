//! The kernel's flow table: that it takes our masks, that they match what they say, and that its
//! flows read as text.
#![allow(missing_docs, reason = "a test binary")]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, ensure};
use netns_tests::{Bench, TestResult, bench, has_per_cpu, station};
use ovs_features::DispatchMode;
use ovs_wire::flow::FlowPut;
use ovs_wire::{ActionBuf, Actions, AttrBuilder, FlowKey, MatchFields, text};
use rustix::io::Errno;
use upcall_testkit::raw::{ETHERTYPE_EXPERIMENTAL, TcpFlags};
use upcall_testkit::{Frame, VlanTag};

fn mode() -> DispatchMode {
    if has_per_cpu() { DispatchMode::PerCpu } else { DispatchMode::PerVport }
}

/// What a frame of a test says; every test changes one thing of it at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packet {
    protocol: Protocol,
    tags: &'static [VlanTag],
    from: u8,
    to: u8,
    ip_from: u8,
    ip_to: u8,
    port_from: u16,
    port_to: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Other,
    Llc,
    Arp,
    Udp4,
    Tcp4,
    Icmp4,
    Udp6,
    Tcp6,
    Icmp6,
    Nd,
}

const TAG: [VlanTag; 1] = [VlanTag { tpid: VlanTag::TPID_8021Q, tci: 10 }];
const OTHER_TAG: [VlanTag; 1] = [VlanTag { tpid: VlanTag::TPID_8021Q, tci: 11 }];
const URGENT_TAG: [VlanTag; 1] = [VlanTag { tpid: VlanTag::TPID_8021Q, tci: 0xa00a }];
const TWO_TAGS: [VlanTag; 2] = [
    VlanTag { tpid: VlanTag::TPID_8021AD, tci: 7 },
    VlanTag { tpid: VlanTag::TPID_8021Q, tci: 10 },
];
const OTHER_INNER: [VlanTag; 2] = [
    VlanTag { tpid: VlanTag::TPID_8021AD, tci: 7 },
    VlanTag { tpid: VlanTag::TPID_8021Q, tci: 11 },
];

impl Packet {
    fn new(protocol: Protocol, tags: &'static [VlanTag]) -> Self {
        Self { protocol, tags, from: 1, to: 2, ip_from: 1, ip_to: 2, port_from: 1000, port_to: 53 }
    }

    /// A tag with an empty nest behind it: without a MASK, the kernel makes one of ones from the key,
    /// takes its empty nest for an absent one, and refuses the tag (`ovs_nla_get_match`).
    fn is_unexact(self) -> bool {
        self.protocol == Protocol::Llc && !self.tags.is_empty()
    }

    fn bytes(self) -> anyhow::Result<Vec<u8>> {
        let frame = Frame::new(station(self.from), station(self.to));
        let frame = self.tags.iter().fold(frame, |frame, tag| frame.vlan(*tag));
        let ip4 = |last| Ipv4Addr::new(10, 9, 0, last);
        let ip6 = |last| Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, u16::from(last));
        let (a4, b4) = (ip4(self.ip_from), ip4(self.ip_to));
        let (a6, b6) = (ip6(self.ip_from), ip6(self.ip_to));
        let ends4 = (SocketAddr::from((a4, self.port_from)), SocketAddr::from((b4, self.port_to)));
        let ends6 = (SocketAddr::from((a6, self.port_from)), SocketAddr::from((b6, self.port_to)));
        let ack = (1, TcpFlags { ack: true, ..TcpFlags::default() });
        Ok(match self.protocol {
            Protocol::Other => frame.raw(ETHERTYPE_EXPERIMENTAL, &[0; 46]),
            Protocol::Llc => frame.raw(46, &[0x42; 46]),
            Protocol::Arp => frame.arp_request(a4, b4)?,
            Protocol::Udp4 => frame.udp(ends4.0, ends4.1, &[0; 20])?,
            Protocol::Udp6 => frame.udp(ends6.0, ends6.1, &[0; 20])?,
            Protocol::Tcp4 => frame.tcp(ends4.0, ends4.1, ack, &[0; 20])?,
            Protocol::Tcp6 => frame.tcp(ends6.0, ends6.1, ack, &[0; 20])?,
            Protocol::Icmp4 => frame.echo_request(a4.into(), b4.into(), (1, 2), &[0; 20])?,
            Protocol::Icmp6 => frame.echo_request(a6.into(), b6.into(), (1, 2), &[0; 20])?,
            Protocol::Nd => frame.raw(0x86dd, &solicitation(a6, b6)),
        })
    }

    /// This packet, changed in what one field matches each; the field and the packet. What the packet
    /// does not have cannot be changed.
    fn variants(self) -> Vec<(MatchFields, Self)> {
        use Protocol as P;
        // ARP says the sender's Ethernet address once more.
        let arp = if self.protocol == P::Arp { MatchFields::ARP } else { MatchFields::empty() };
        let mut all = vec![
            (MatchFields::ETH_SRC | arp, Self { from: 3, ..self }),
            (MatchFields::ETH_DST, Self { to: 3, ..self }),
        ];
        let addresses = (Self { ip_from: 3, ..self }, Self { ip_to: 3, ..self });
        let ports = (Self { port_from: 1001, ..self }, Self { port_to: 54, ..self });
        match self.protocol {
            P::Other | P::Llc => {}
            P::Arp => {
                all.extend([(MatchFields::ARP, addresses.0), (MatchFields::ARP, addresses.1)]);
            }
            // The target is the destination: a solicitation differs in both.
            P::Nd => all.push((MatchFields::IP_SRC, addresses.0)),
            P::Icmp4 | P::Icmp6 => {
                all.extend([
                    (MatchFields::IP_SRC, addresses.0),
                    (MatchFields::IP_DST, addresses.1),
                ]);
            }
            P::Udp4 | P::Tcp4 | P::Udp6 | P::Tcp6 => all.extend([
                (MatchFields::IP_SRC, addresses.0),
                (MatchFields::IP_DST, addresses.1),
                (MatchFields::TP_SRC, ports.0),
                (MatchFields::TP_DST, ports.1),
            ]),
        }
        if self.protocol == P::Udp4 {
            all.push((MatchFields::IP_PROTO, Self { protocol: P::Tcp4, ..self }));
            all.push((MatchFields::ETH_TYPE, Self { protocol: P::Arp, ..self }));
        }
        if self.tags == TAG {
            all.push((MatchFields::VLAN_VID, Self { tags: &OTHER_TAG, ..self }));
            all.push((MatchFields::VLAN_PCP, Self { tags: &URGENT_TAG, ..self }));
        }
        if self.tags == TWO_TAGS {
            all.push((MatchFields::VLAN_VID, Self { tags: &OTHER_INNER, ..self }));
        }
        all
    }
}

/// A neighbour solicitation for `target`; its checksum is wrong, which the datapath does not look at.
fn solicitation(from: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 24, 58, 64];
    packet.extend(from.octets());
    packet.extend(target.octets());
    packet.extend([135, 0, 0, 0, 0, 0, 0, 0]);
    packet.extend(target.octets());
    packet
}

/// What handlers ask for: the switch, the hub and the cross-connect of the daemon, and what an
/// embedder may.
fn subsets() -> [MatchFields; 7] {
    let l2 = MatchFields::IN_PORT | MatchFields::ETH_SRC | MatchFields::ETH_DST;
    [
        MatchFields::IN_PORT,
        MatchFields::IN_PORT | MatchFields::ETH_TYPE,
        l2 | MatchFields::VLAN_VID | MatchFields::ETH_TYPE,
        l2 | MatchFields::VLAN_VID | MatchFields::VLAN_PCP,
        MatchFields::IN_PORT | MatchFields::FIVE_TUPLE,
        MatchFields::IN_PORT | MatchFields::ARP | MatchFields::ND | MatchFields::TCP_FLAGS,
        MatchFields::EXACT,
    ]
}

/// The flow that a handler gets when it asks for these fields, as the dispatcher writes it.
async fn put(
    bench: &Bench,
    key: &[u8],
    fields: MatchFields,
    actions: &ActionBuf,
) -> anyhow::Result<()> {
    let mut mask = Vec::new();
    FlowKey::new(key).write_mask(fields, &mut AttrBuilder::new(&mut mask))?;
    let put = FlowPut {
        dp_ifindex: bench.dp.ifindex,
        key,
        mask: (fields != MatchFields::EXACT).then_some(mask.as_slice()),
        actions: actions.as_bytes(),
        probe: false,
        ufid: None,
    };
    Ok(bench.control.put_flow(&put).await?)
}

fn output(port: u32) -> ActionBuf {
    let mut actions = ActionBuf::new();
    actions.output(port);
    actions
}

/// Does a frame from host 0 come up? What does not, reaches host 1.
fn comes_up(bench: &mut Bench, bytes: &[u8]) -> anyhow::Result<bool> {
    bench.links[0].send(bytes)?;
    let up = bench.fence(2)?;
    ensure!(up.len() <= 1, "one frame, {} upcalls", up.len());
    if up.is_empty() {
        ensure!(bench.arrival(1)? == bytes, "it matched, and another frame came out");
    }
    Ok(!up.is_empty())
}

/// Every subset of fields on this packet: the kernel takes the mask, the packet matches, and a packet
/// that differs in one field matches exactly if the field is not in the mask.
async fn masks_match(bench: &mut Bench, packet: Packet) -> TestResult {
    let bytes = packet.bytes()?;
    for fields in subsets() {
        let got = bench.miss(0, &bytes)?;
        let answer = put(bench, got.upcall().key, fields, &output(2)).await;
        if packet.is_unexact() && fields == MatchFields::EXACT {
            ensure!(
                answer.is_err(),
                "the kernel has learned to match a tagged 802.2 frame exactly"
            );
            continue;
        }
        answer.with_context(|| format!("{packet:?} {fields:?}"))?;
        let text = dump(bench).await?.remove(0);
        ensure!(!comes_up(bench, &bytes)?, "{packet:?} {fields:?}: it does not match {text:?}");
        let mut required = fields.with_required();
        if !packet.tags.is_empty() {
            // The kernel wants something matched behind a tag.
            required |= MatchFields::ETH_TYPE;
        }
        for (changed, variant) in packet.variants() {
            let expected = required.intersects(changed);
            let up = comes_up(bench, &variant.bytes()?)?;
            ensure!(up == expected, "{variant:?} of {packet:?}, {fields:?}: {text:?}");
        }
        bench.control.delete_flow(bench.dp.ifindex, None).await?;
    }
    Ok(())
}

/// Key and actions of every flow as text; the key's text reads back to the same key and mask.
async fn dump(bench: &Bench) -> anyhow::Result<Vec<(String, String)>> {
    let flows = bench.control.flows(bench.dp.ifindex, |flow| {
        (flow.key.to_vec(), flow.mask.to_vec(), flow.actions.to_vec())
    });
    let mut texts = Vec::new();
    for (key, mask, actions) in flows.await? {
        let text = text::format_key(FlowKey::new(&key), Some(FlowKey::new(&mask))).to_string();
        let (mut key_again, mut mask_again) = (Vec::new(), Vec::new());
        text::parse_key(&text, &mut key_again, &mut mask_again)?;
        let (key_again, mask_again) = (FlowKey::new(&key_again), FlowKey::new(&mask_again));
        let again = text::format_key(key_again, Some(mask_again)).to_string();
        // The kernel tells of a length field that is not matched what the peer prints, too.
        let text = text.replace(",eth_type(0/0x0000)", "");
        ensure!(text == again, "{text} reads back as {again}: {key:02x?} {mask:02x?}");
        texts.push((text, text::format_actions(Actions::new(&actions)).to_string()));
    }
    Ok(texts)
}

#[test]
fn masks_for_ipv4_match_what_they_say() -> TestResult {
    bench(3, mode(), async |bench| {
        for protocol in [Protocol::Udp4, Protocol::Tcp4, Protocol::Icmp4, Protocol::Arp] {
            masks_match(bench, Packet::new(protocol, &[])).await?;
        }
        Ok(())
    })
}

#[test]
fn masks_for_ipv6_match_what_they_say() -> TestResult {
    bench(3, mode(), async |bench| {
        for protocol in [Protocol::Udp6, Protocol::Tcp6, Protocol::Icmp6, Protocol::Nd] {
            masks_match(bench, Packet::new(protocol, &[])).await?;
        }
        Ok(())
    })
}

#[test]
fn masks_for_tagged_packets_match_what_they_say() -> TestResult {
    bench(3, mode(), async |bench| {
        for protocol in [Protocol::Udp4, Protocol::Nd, Protocol::Other, Protocol::Llc] {
            masks_match(bench, Packet::new(protocol, &TAG)).await?;
        }
        for protocol in [Protocol::Udp4, Protocol::Arp, Protocol::Other] {
            masks_match(bench, Packet::new(protocol, &TWO_TAGS)).await?;
        }
        Ok(())
    })
}

#[test]
fn masks_for_other_frames_match_what_they_say() -> TestResult {
    bench(3, mode(), async |bench| {
        for protocol in [Protocol::Other, Protocol::Llc] {
            masks_match(bench, Packet::new(protocol, &[])).await?;
        }
        Ok(())
    })
}

/// An untagged packet's flow does not catch tagged ones, and the other way round.
#[test]
fn tagged_and_untagged_are_apart_even_under_the_widest_mask() -> TestResult {
    bench(3, mode(), async |bench| {
        let plain = Packet::new(Protocol::Udp4, &[]).bytes()?;
        let tagged = Packet::new(Protocol::Udp4, &TAG).bytes()?;
        for (flow, other) in [(&plain, &tagged), (&tagged, &plain)] {
            let got = bench.miss(0, flow)?;
            put(bench, got.upcall().key, MatchFields::IN_PORT, &output(2)).await?;
            ensure!(!comes_up(bench, flow)? && comes_up(bench, other)?);
            bench.control.delete_flow(bench.dp.ifindex, None).await?;
        }
        Ok(())
    })
}

#[test]
fn a_flow_is_put_read_replaced_and_deleted() -> TestResult {
    bench(3, mode(), async |bench| {
        let bytes = Packet::new(Protocol::Udp4, &[]).bytes()?;
        let (ifindex, got) = (bench.dp.ifindex, bench.miss(0, &bytes)?);
        let key = got.upcall().key;
        let control = bench.control.clone();
        let actions = async || {
            let read =
                |flow: &ovs_wire::flow::Flow<'_>| (flow.actions.to_vec(), flow.stats.packets);
            control.flow(ifindex, key, read).await
        };
        ensure!(actions().await?.is_none(), "there is none yet");
        let err = control.delete_flow(ifindex, Some(key)).await.unwrap_err();
        ensure!(err.is(Errno::NOENT), "{err}");
        put(bench, key, MatchFields::EXACT, &output(3)).await?;
        ensure!(actions().await? == Some((output(3).as_bytes().to_vec(), 0)));
        // Put again, it has the new actions; no second flow.
        put(bench, key, MatchFields::EXACT, &output(2)).await?;
        ensure!(!comes_up(bench, &bytes)?);
        ensure!(actions().await? == Some((output(2).as_bytes().to_vec(), 1)));
        ensure!(dump(bench).await?.len() == 1 && bench.stats().await?.flows == 1);
        control.delete_flow(ifindex, Some(key)).await?;
        ensure!(comes_up(bench, &bytes)? && dump(bench).await?.is_empty());
        Ok(())
    })
}

#[test]
fn a_flow_without_actions_drops() -> TestResult {
    bench(3, mode(), async |bench| {
        let bytes = Packet::new(Protocol::Udp4, &[]).bytes()?;
        let got = bench.miss(0, &bytes)?;
        put(bench, got.upcall().key, MatchFields::IN_PORT, &ActionBuf::new()).await?;
        bench.links[0].send(&bytes)?;
        ensure!(bench.fence(2)?.is_empty(), "it does not come up");
        ensure!(dump(bench).await?[0].1 == "drop");
        let stats = bench.stats().await?;
        ensure!((stats.hit, stats.flows) == (1, 1), "{stats:?}");
        Ok(())
    })
}

#[test]
fn flows_read_as_ovs_dpctl_prints_them() -> TestResult {
    let switch = MatchFields::IN_PORT
        | MatchFields::ETH_SRC
        | MatchFields::ETH_DST
        | MatchFields::VLAN_VID
        | MatchFields::ETH_TYPE;
    let eth = "eth(src=02:50:00:00:00:01,dst=02:50:00:00:00:02)";
    let cases = [
        (Packet::new(Protocol::Udp4, &[]), switch, format!("{eth},eth_type(0x0800)")),
        (
            Packet::new(Protocol::Other, &TAG),
            switch,
            format!("{eth},eth_type(0x8100),vlan(vid=10),encap(eth_type(0x88b5))"),
        ),
        (Packet::new(Protocol::Llc, &[]), switch, format!("{eth},eth_type(0/0xffff)")),
        (
            Packet::new(Protocol::Tcp4, &[]),
            MatchFields::IN_PORT | MatchFields::FIVE_TUPLE,
            "eth(),eth_type(0x0800),ipv4(src=10.9.0.1,dst=10.9.0.2,proto=6,frag=no),\
             tcp(src=1000,dst=53)"
                .to_owned(),
        ),
    ];
    bench(3, mode(), async |bench| {
        for (packet, fields, behind) in &cases {
            let got = bench.miss(0, &packet.bytes()?)?;
            put(bench, got.upcall().key, *fields, &output(2)).await?;
            let flows = dump(bench).await?;
            let expected = format!("recirc_id(0),in_port(1),{behind}");
            ensure!(flows == [(expected.clone(), "2".to_owned())], "{flows:?}, not {expected}");
            bench.control.delete_flow(bench.dp.ifindex, None).await?;
        }
        Ok(())
    })
}
