//! Socket filters that know upcalls: a classic BPF program that lets through a part of some ports' upcalls.
//!
//! It is here and not beside the socket because it is nothing but layout: where in a message the kernel
//! writes `IN_PORT`. The kernel runs it in `netlink_unicast` (`net/netlink/af_netlink.c`), before the
//! message takes room in the receive buffer, and counts what it refuses as delivered.
//!
//! The program walks the attributes of KEY. The attribute extensions of classic BPF (`SKF_AD_NLATTR`)
//! would be shorter, but give up on a message whose packet was not copied (`skb_is_nonlinear`,
//! `net/core/filter.c`), which is how large packets come; plain loads work on both. An offset that is
//! fixed would not do: a tunnel stands before `IN_PORT` and has any length (`__ovs_nla_put_key`,
//! `net/openvswitch/flow_netlink.c`).
//!
//! A load outside of a message ends a program as a refusal, so every load is behind a comparison:
//! whatever is no upcall, or has no `IN_PORT`, is let through.

use crate::attr::{HEADER_LEN, TYPE_MASK};
use crate::key::kind;
use crate::nl::{NLMSG_HDR_LEN, OVS_HDR_LEN};
use crate::packet::attr;

/// Ports that one program samples at most.
pub const PORTS_MAX: usize = 8;

/// Attributes of KEY that are looked at. The kernel writes `IN_PORT` fourth, or fifth behind a tunnel.
const STEPS: usize = 6;

/// An instruction of classic BPF (`struct sock_filter`, `include/uapi/linux/filter.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insn {
    /// Operation, addressing mode and size.
    pub code: u16,
    /// Instructions to skip if a comparison holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// A port, and what part of its upcalls is let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortShare {
    /// Port number.
    pub port: u32,
    /// Of 2^32 upcalls so many, chosen at random by the kernel.
    pub admit: u32,
}

/// The program that lets through these shares, and everything of all other ports. Ports past
/// [`PORTS_MAX`] count among the others.
pub fn sample_ports(shares: &[PortShare]) -> Vec<Insn> {
    let shares = &shares[..shares.len().min(PORTS_MAX)];
    let mut asm = Assembler::default();
    asm.enter_key();
    for _ in 0..STEPS {
        asm.look_at_attribute();
    }
    asm.jump(Label::Admit);
    asm.put(Label::Found);
    asm.op(op::LD_W_IND, HEADER_LEN as u32);
    for (at, share) in shares.iter().enumerate() {
        // A load is big-endian, the attribute is not.
        let port = u32::from_be_bytes(share.port.to_ne_bytes());
        asm.branch(op::JEQ_K, port, Some(Label::Sample(at)), None);
    }
    asm.put(Label::Admit);
    asm.op(op::RET_K, u32::MAX);
    for (at, share) in shares.iter().enumerate() {
        asm.put(Label::Sample(at));
        asm.op(op::LD_W_ABS, op::AD_RANDOM);
        asm.branch(op::JGE_K, share.admit, Some(Label::Refuse), None);
        asm.op(op::RET_K, u32::MAX);
    }
    asm.put(Label::Refuse);
    asm.op(op::RET_K, 0);
    asm.finish()
}

/// Operations, and the offset of a word that is not in the message.
mod op {
    pub(super) const LD_W_ABS: u16 = 0x20;
    pub(super) const LD_H_ABS: u16 = 0x28;
    pub(super) const LD_B_ABS: u16 = 0x30;
    pub(super) const LD_W_IND: u16 = 0x40;
    pub(super) const LD_H_IND: u16 = 0x48;
    pub(super) const LD_B_IND: u16 = 0x50;
    pub(super) const LD_MEM: u16 = 0x60;
    pub(super) const LD_LEN: u16 = 0x80;
    pub(super) const LDX_IMM: u16 = 0x01;
    pub(super) const LDX_MEM: u16 = 0x61;
    pub(super) const ST: u16 = 0x02;
    pub(super) const STX: u16 = 0x03;
    pub(super) const ADD_K: u16 = 0x04;
    pub(super) const ADD_X: u16 = 0x0c;
    pub(super) const SUB_K: u16 = 0x14;
    pub(super) const OR_X: u16 = 0x4c;
    pub(super) const AND_K: u16 = 0x54;
    pub(super) const LSH_K: u16 = 0x64;
    pub(super) const JA: u16 = 0x05;
    pub(super) const JEQ_K: u16 = 0x15;
    pub(super) const JGE_K: u16 = 0x35;
    pub(super) const JGE_X: u16 = 0x3d;
    pub(super) const RET_K: u16 = 0x06;
    pub(super) const TAX: u16 = 0x07;
    pub(super) const TXA: u16 = 0x87;
    /// `SKF_AD_OFF + SKF_AD_RANDOM`: a random word.
    pub(super) const AD_RANDOM: u32 = (-0x1000_i32 + 56).cast_unsigned();
}

/// Where the first attribute starts.
const ATTRS: u32 = (NLMSG_HDR_LEN + OVS_HDR_LEN) as u32;
/// Where KEY's own attributes start, KEY being the first.
const KEY: u32 = ATTRS + HEADER_LEN as u32;
/// Bytes of an attribute that holds a u32.
const WORD_ATTR: u32 = HEADER_LEN as u32 + 4;

/// The low and the high byte of a u16 at this offset.
const fn bytes_of_u16(at: u32) -> (u32, u32) {
    if cfg!(target_endian = "little") { (at, at + 1) } else { (at + 1, at) }
}

/// A u16 of the message as a load gives it.
const fn loaded(value: u16) -> u32 {
    u16::from_be_bytes(value.to_ne_bytes()) as u32
}

/// Memory cells of the program.
mod cell {
    /// The last offset at which an attribute with a word can start within KEY.
    pub(super) const LAST: u32 = 0;
    /// Offset of the attribute that is looked at.
    pub(super) const AT: u32 = 1;
    /// High byte of a length.
    pub(super) const HIGH: u32 = 2;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    Found,
    Admit,
    Refuse,
    Sample(usize),
}

/// Instructions with jumps to labels that come later.
#[derive(Debug, Default)]
struct Assembler {
    code: Vec<(u16, u32, [Option<Label>; 2])>,
    labels: Vec<(Label, usize)>,
}

impl Assembler {
    fn op(&mut self, code: u16, k: u32) {
        self.branch(code, k, None, None);
    }

    /// A comparison; `None` is the next instruction.
    fn branch(&mut self, code: u16, k: u32, yes: Option<Label>, no: Option<Label>) {
        self.code.push((code, k, [yes, no]));
    }

    fn jump(&mut self, to: Label) {
        self.branch(op::JA, 0, Some(to), None);
    }

    fn put(&mut self, label: Label) {
        self.labels.push((label, self.code.len()));
    }

    /// Goes on with X at the first attribute of KEY, if the message has a whole one.
    fn enter_key(&mut self) {
        let (low, high) = bytes_of_u16(ATTRS);
        self.op(op::LD_LEN, 0);
        self.branch(op::JGE_K, KEY, None, Some(Label::Admit));
        self.op(op::LD_H_ABS, ATTRS + 2);
        self.op(op::AND_K, loaded(TYPE_MASK));
        self.branch(op::JEQ_K, loaded(attr::KEY), None, Some(Label::Admit));
        self.op(op::LD_B_ABS, high);
        self.op(op::LSH_K, 8);
        self.op(op::TAX, 0);
        self.op(op::LD_B_ABS, low);
        self.op(op::OR_X, 0);
        self.op(op::ADD_K, ATTRS);
        self.op(op::TAX, 0);
        self.op(op::LD_LEN, 0);
        self.branch(op::JGE_X, 0, None, Some(Label::Admit));
        self.op(op::TXA, 0);
        self.op(op::SUB_K, WORD_ATTR);
        self.op(op::ST, cell::LAST);
        self.op(op::LDX_IMM, KEY);
    }

    /// Goes to `Found` if the attribute at X is `IN_PORT`, else on with X at the next one.
    fn look_at_attribute(&mut self) {
        let (low, high) = bytes_of_u16(0);
        self.op(op::LD_MEM, cell::LAST);
        self.branch(op::JGE_X, 0, None, Some(Label::Admit));
        self.op(op::LD_H_IND, 2);
        self.op(op::AND_K, loaded(TYPE_MASK));
        self.branch(op::JEQ_K, loaded(kind::IN_PORT), Some(Label::Found), None);
        self.op(op::STX, cell::AT);
        self.op(op::LD_B_IND, high);
        self.op(op::LSH_K, 8);
        self.op(op::ST, cell::HIGH);
        self.op(op::LD_B_IND, low);
        self.op(op::LDX_MEM, cell::HIGH);
        self.op(op::OR_X, 0);
        self.op(op::ADD_K, 3);
        self.op(op::AND_K, !3);
        self.op(op::LDX_MEM, cell::AT);
        self.op(op::ADD_X, 0);
        self.op(op::TAX, 0);
    }

    /// Resolves the labels; all of them are put, and none further than a jump goes.
    fn finish(self) -> Vec<Insn> {
        let skip = |from: usize, to: Option<Label>| {
            let Some(to) = to else { return 0 };
            let target = self.labels.iter().find(|(label, _)| *label == to);
            target.map_or(0, |(_, at)| at - from - 1)
        };
        let resolve = |(at, &(code, k, [yes, no])): (usize, &(u16, u32, [Option<Label>; 2]))| {
            let (jt, jf) = (skip(at, yes), skip(at, no));
            if code == op::JA {
                return Insn { code, jt: 0, jf: 0, k: jt as u32 };
            }
            debug_assert!(u8::try_from(jt.max(jf)).is_ok(), "a jump of {jt} or {jf}");
            Insn { code, jt: jt as u8, jf: jf as u8, k }
        };
        self.code.iter().enumerate().map(resolve).collect()
    }
}

#[cfg(test)]
mod tests;
