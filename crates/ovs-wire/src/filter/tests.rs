//! The program on an interpreter of classic BPF that fails where the kernel would end the program.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::AttrBuilder;
use crate::key::KeyAttr;
use crate::nl::{OvsHeader, write_message};
use crate::packet::{self, cmd};

/// Runs a program and says how much of the message it lets through; `None` where it loads what is
/// not in the message.
fn run(program: &[Insn], message: &[u8], random: u32) -> Option<u32> {
    let (mut a, mut x, mut mem, mut pc) = (0u32, 0u32, [0u32; 16], 0usize);
    let load = |at: u32, len: usize| {
        let bytes = message.get(at as usize..(at as usize).checked_add(len)?)?;
        Some(bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    };
    loop {
        let Insn { code, jt, jf, k } = program[pc];
        pc += 1;
        let branch = |holds: bool| usize::from(if holds { jt } else { jf });
        match code {
            op::LD_W_ABS if k == op::AD_RANDOM => a = random,
            op::LD_W_ABS => a = load(k, 4)?,
            op::LD_H_ABS => a = load(k, 2)?,
            op::LD_B_ABS => a = load(k, 1)?,
            op::LD_W_IND => a = load(x.checked_add(k)?, 4)?,
            op::LD_H_IND => a = load(x.checked_add(k)?, 2)?,
            op::LD_B_IND => a = load(x.checked_add(k)?, 1)?,
            op::LD_MEM => a = mem[k as usize],
            op::LD_LEN => a = message.len() as u32,
            op::LDX_IMM => x = k,
            op::LDX_MEM => x = mem[k as usize],
            op::ST => mem[k as usize] = a,
            op::STX => mem[k as usize] = x,
            op::ADD_K => a = a.wrapping_add(k),
            op::ADD_X => a = a.wrapping_add(x),
            op::SUB_K => a = a.wrapping_sub(k),
            op::OR_X => a |= x,
            op::AND_K => a &= k,
            op::LSH_K => a <<= k,
            op::JA => pc += k as usize,
            op::JEQ_K => pc += branch(a == k),
            op::JGE_K => pc += branch(a >= k),
            op::JGE_X => pc += branch(a >= x),
            op::TAX => x = a,
            op::TXA => a = x,
            op::RET_K => return Some(k),
            other => panic!("no such operation: {other:#x}"),
        }
    }
}

/// Lets through no upcall of these ports.
fn refuse_all(ports: &[u32]) -> Vec<Insn> {
    sample_ports(&ports.iter().map(|&port| PortShare { port, admit: 0 }).collect::<Vec<_>>())
}

/// An upcall in the kernel's order with this key.
fn upcall(key: &[u8], action: bool) -> Vec<u8> {
    let mut buf = Vec::new();
    let cmd = if action { cmd::ACTION } else { cmd::MISS };
    let header = OvsHeader { cmd, version: packet::VERSION, dp_ifindex: 9 };
    write_message(&mut buf, 31, 0, 0, header, |b| {
        b.bytes(attr::KEY, key);
        if action {
            // Its type is that of IN_PORT: it must not be taken for one.
            b.bytes(attr::USERDATA, &[3; 7]).u32(attr::ACTIONS, 1);
        }
        b.u64(attr::HASH, 5).bytes(attr::PACKET, &[7; 60]);
    })
    .unwrap();
    buf
}

/// The metadata of a key in the kernel's order, with a tunnel of this many bytes.
fn key(tunnel: Option<&[u8]>, in_port: Option<u32>, rest: &[u8]) -> Vec<u8> {
    let mut buf = Vec::new();
    let mut b = AttrBuilder::new(&mut buf);
    for attr in [KeyAttr::RecircId(3), KeyAttr::DpHash(3), KeyAttr::Priority(3)] {
        attr.write(&mut b);
    }
    let known = [tunnel.map(KeyAttr::Tunnel), in_port.map(KeyAttr::InPort)];
    for attr in known.into_iter().flatten() {
        attr.write(&mut b);
    }
    KeyAttr::SkbMark(1).write(&mut b);
    KeyAttr::CtState(2).write(&mut b);
    KeyAttr::CtZone(3).write(&mut b);
    KeyAttr::CtLabels([3; 16]).write(&mut b);
    b.bytes(kind::ETHERNET, &[3; 12]);
    b.bytes(kind::ENCAP, rest);
    b.finish().unwrap();
    buf
}

#[test]
fn only_the_ports_that_are_named_are_refused() {
    let program = refuse_all(&[2, 70_000]);
    for tunnel in [None, Some(&[][..]), Some(&[0xff; 13]), Some(&[0; 300])] {
        for action in [false, true] {
            let answer = |port| run(&program, &upcall(&key(tunnel, port, &[]), action), 0);
            assert_eq!(answer(Some(2)), Some(0), "{tunnel:?}");
            assert_eq!(answer(Some(70_000)), Some(0));
            for other in [Some(0), Some(1), Some(3), Some(2 << 24), Some(2 << 16), None] {
                assert_eq!(answer(other), Some(u32::MAX), "{other:?} {tunnel:?}");
            }
        }
    }
}

#[test]
fn a_share_is_of_what_the_kernel_draws() {
    let program = sample_ports(&[PortShare { port: 5, admit: 1 << 30 }]);
    let message = upcall(&key(None, Some(5), &[]), false);
    assert_eq!(run(&program, &message, (1 << 30) - 1), Some(u32::MAX));
    assert_eq!(run(&program, &message, 1 << 30), Some(0));
    assert_eq!(run(&program, &message, u32::MAX), Some(0));
}

#[test]
fn as_many_ports_as_there_may_be_and_none_more() {
    let ports: Vec<u32> = (1..=PORTS_MAX as u32 + 1).collect();
    let program = refuse_all(&ports);
    for &port in &ports {
        let admitted = run(&program, &upcall(&key(Some(&[1; 40]), Some(port), &[]), true), 9);
        let expected = if port as usize <= PORTS_MAX { 0 } else { u32::MAX };
        assert_eq!(admitted, Some(expected), "port {port}");
    }
    assert!(program.len() < 256, "{}", program.len());
}

#[test]
fn what_is_no_upcall_is_let_through() {
    let program = refuse_all(&[1]);
    let whole = upcall(&key(None, Some(1), &[]), false);
    assert_eq!(run(&program, &whole, 0), Some(0));
    for len in 0..KEY as usize + 4 * WORD_ATTR as usize {
        assert_eq!(run(&program, &whole[..len], 0), Some(u32::MAX), "cut at {len}");
    }
    let mut other = whole;
    other[ATTRS as usize + 2..KEY as usize].copy_from_slice(&attr::HASH.to_ne_bytes());
    assert_eq!(run(&program, &other, 0), Some(u32::MAX));
}

proptest! {
    #[test]
    fn the_answer_is_the_keys(
        tunnel in option::of(vec(any::<u8>(), 0..400)),
        in_port in option::of(0..6u32),
        rest in vec(any::<u8>(), 0..64),
        shares in vec((0..6u32, any::<u32>()), 0..6),
        action in any::<bool>(),
        random in any::<u32>(),
    ) {
        let message = upcall(&key(tunnel.as_deref(), in_port, &rest), action);
        let shares: Vec<_> = shares.iter().map(|&(port, admit)| PortShare { port, admit }).collect();
        let share = shares.iter().find(|share| Some(share.port) == in_port);
        let expected = share.is_none_or(|share| random < share.admit);
        let admitted = run(&sample_ports(&shares), &message, random);
        prop_assert_eq!(admitted, Some(if expected { u32::MAX } else { 0 }));
    }

    #[test]
    fn no_bytes_make_it_load_what_is_not_there(
        bytes in vec(any::<u8>(), 0..200),
        at in 0..80usize,
        garbage in vec(any::<u8>(), 0..8),
    ) {
        let program = refuse_all(&[1, 2]);
        prop_assert!(run(&program, &bytes, 0).is_some());
        // An upcall with a few bytes overwritten.
        let mut message = upcall(&key(Some(&[1; 9]), Some(1), &[]), true);
        message[at..at + garbage.len()].copy_from_slice(&garbage);
        prop_assert!(run(&program, &message, 0).is_some());
    }
}
