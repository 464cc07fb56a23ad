//! The eBPF program, and what it and its readers have in common.
#![allow(
    clippy::cast_possible_wrap,
    reason = "offsets in a stack of 512 bytes, and in the first page of memory"
)]

/// Times that the ring holds: more than a receive buffer of 4 MiB holds of the smallest upcalls (4,680).
pub(super) const RING: u64 = 8192;
/// Words before it: how many times were written has a cache line of its own, and so have the shares.
pub(super) const HEADER: usize = 16;
/// Where the shares of what is sampled are: the value in the high half of a word, the part to be refused in the low
/// one. The first word is 0 when there are none.
pub(super) const SHARES_AT: usize = 8;
/// Values that messages can be sampled by at once.
pub(super) const SHARES_MAX: usize = 8;
/// Words behind it, by hash: which message with that hash is the last one, counted from 1.
pub(super) const BUCKETS: usize = 1 << BUCKET_BITS;
const BUCKET_BITS: u32 = 14;

/// Bytes of an attribute that are hashed at most, as words.
const WORDS_MAX: usize = 17;
/// Odd, and with its bits spread (the golden ratio).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bits.
const HALF: u32 = u64::BITS / 2;

/// Which messages are alike: those whose attribute at one place has the same value, as far as its first bytes go; and
/// by what they can be sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alike {
    /// Where the attribute begins with its header, in bytes from the beginning of the message.
    pub at: u16,
    /// Bytes of its value that count: from 1 to 136.
    pub max: u16,
    /// Type of an attribute with a word, one of the first six of those that are nested in it:
    /// [`Socket::sample`](crate::Socket::sample) goes by that word.
    pub word: u16,
}

/// Bytes of an attribute's header.
const ATTR_HEADER: u16 = 4;

impl Alike {
    fn max(self) -> usize {
        usize::from(self.max).clamp(1, WORDS_MAX * size_of::<u64>())
    }

    /// What messages that are alike have in common, of the attribute's value, as the program has it: less than
    /// 16,384.
    pub fn bucket(self, value: &[u8]) -> usize {
        if value.is_empty() {
            return 0;
        }
        let value = &value[..value.len().min(self.max())];
        let mut bytes = [0; WORDS_MAX * size_of::<u64>()];
        bytes[..value.len()].copy_from_slice(value);
        let (words, _) = bytes.as_chunks();
        let mix =
            |hash: u64, word: &[u8; 8]| (hash ^ u64::from_ne_bytes(*word)).wrapping_mul(SPREAD);
        let hash = words.iter().fold(0, mix);
        ((hash ^ hash >> HALF).wrapping_mul(SPREAD) >> (u64::BITS - BUCKET_BITS)) as usize
    }
}

/// Registers.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
/// Kept over calls: the map's value, what is constant, the hash, the message.
const VALUE: u8 = 6;
const CONST: u8 = 7;
const HASH: u8 = 8;
const MESSAGE: u8 = 9;
/// The end of the stack.
const FRAME: u8 = 10;

/// Where the stack has the words that are hashed, and the attribute's length.
const WORDS_AT: i16 = -((WORDS_MAX * size_of::<u64>()) as i16);
const LEN_AT: i16 = WORDS_AT - size_of::<u64>() as i16;
/// And an attribute that is nested in it: header and word.
const NESTED_AT: i16 = LEN_AT - size_of::<u64>() as i16;
const NESTED_LEN: u32 = 8;
/// Nested attributes that are looked at.
const NESTED_MAX: usize = 6;
/// The bits of an attribute's type that are no flags (`NLA_TYPE_MASK`, `include/uapi/linux/netlink.h`).
const TYPE_MASK: u32 = 0x3fff;
/// Where the memory has a word that nobody writes.
const ZERO_AT: i16 = size_of::<u64>() as i16;

/// Of a wide constant: it is a map's descriptor, and what it means is where its value is.
const MAP_VALUE: u8 = 2;

/// Helpers of the kernel (`enum bpf_func_id`, `include/uapi/linux/bpf.h`).
const KTIME_GET_NS: u32 = 5;
const GET_PRANDOM_U32: u32 = 7;
const SKB_LOAD_BYTES: u32 = 26;

/// An instruction (`struct bpf_insn`, `include/uapi/linux/bpf.h`).
const fn insn(code: u8, (dst, src): (u8, u8), off: i16, imm: u32) -> u64 {
    let regs = if cfg!(target_endian = "little") { src << 4 | dst } else { dst << 4 | src };
    let (off, imm) = (off.to_ne_bytes(), imm.to_ne_bytes());
    u64::from_ne_bytes([code, regs, off[0], off[1], imm[0], imm[1], imm[2], imm[3]])
}

const fn mov(dst: u8, src: u8) -> u64 {
    insn(0xbf, (dst, src), 0, 0)
}

const fn set(dst: u8, to: u32) -> u64 {
    insn(0xb7, (dst, 0), 0, to)
}

const fn add(dst: u8, src: u8) -> u64 {
    insn(0x0f, (dst, src), 0, 0)
}

const fn add_constant(dst: u8, constant: u32) -> u64 {
    insn(0x07, (dst, 0), 0, constant)
}

const fn and(dst: u8, constant: u32) -> u64 {
    insn(0x57, (dst, 0), 0, constant)
}

/// Over so many instructions unless a register is 0.
const fn skip_unless_0(register: u8, skip: usize) -> u64 {
    insn(0x55, (register, 0), skip as i16, 0)
}

const fn xor(dst: u8, src: u8) -> u64 {
    insn(0xaf, (dst, src), 0, 0)
}

const fn multiply(dst: u8, src: u8) -> u64 {
    insn(0x2f, (dst, src), 0, 0)
}

const fn shift_right(dst: u8, by: u32) -> u64 {
    insn(0x77, (dst, 0), 0, by)
}

const fn shift_left(dst: u8, by: u32) -> u64 {
    insn(0x67, (dst, 0), 0, by)
}

/// A half word of the stack to a register.
const fn load_half(dst: u8, off: i16) -> u64 {
    insn(0x69, (dst, FRAME), off, 0)
}

/// A word of memory to a register, and the other way.
const fn load(dst: u8, (at, off): (u8, i16)) -> u64 {
    insn(0x79, (dst, at), off, 0)
}

const fn store((at, off): (u8, i16), src: u8) -> u64 {
    insn(0x7b, (at, src), off, 0)
}

const EXIT: u64 = insn(0x95, (0, 0), 0, 0);

const fn call(helper: u32) -> u64 {
    insn(0x85, (0, 0), 0, helper)
}

/// Refuses the part of messages that the shares in the memory of the map with this descriptor say. Of all others
/// writes the time, and the message's number where its hash says, there; lets them pass whole. Messages of several
/// CPUs get numbers of their own; of those that come at the same moment, one that is queued first may have the later
/// number, and its time be that of the other.
pub(super) fn write(map: u32, alike: Alike) -> Vec<u64> {
    let mut program = vec![mov(MESSAGE, R1)];
    program.extend(wide(VALUE, MAP_VALUE, u64::from(map)));
    program.extend(sample(alike));
    // 0, which the verifier must not know: without CAP_PERFMON it takes no arithmetic on a pointer that is with
    // a number it knows by one way and with one it does not by another.
    program.push(load(HASH, (VALUE, ZERO_AT)));
    let words = (0..WORDS_MAX as i16).map(|word| WORDS_AT + 8 * word);
    program.extend(words.clone().map(|at| insn(0x7a, (FRAME, 0), at, 0)));
    let mut hash = take_attr(alike);
    hash.extend(wide(CONST, 0, SPREAD));
    for at in words {
        hash.push(load(R1, (FRAME, at)));
        hash.extend([xor(HASH, R1), multiply(HASH, CONST)]);
    }
    // What differs in high bits alone would stay there.
    hash.extend([mov(R1, HASH), shift_right(R1, HALF), xor(HASH, R1), multiply(HASH, CONST)]);
    hash.push(shift_right(HASH, u64::BITS - BUCKET_BITS));
    program.extend(length_or_skip(alike, hash.len() as i16));
    program.extend(hash);
    program.extend(record());
    program
}

/// Goes on behind itself, unless the message's word has a share and the lot says that it is refused.
fn sample(alike: Alike) -> Vec<u64> {
    let found = draw();
    let end = found.len();
    let mut program = vec![insn(0x05, (0, 0), end as i16, 0)]; // none of them is it
    program.extend(found);
    for _ in 0..NESTED_MAX {
        program.splice(0..0, look_at_nested(alike.word, program.len(), end));
    }
    let mut enter = vec![set(R4, 2)];
    enter.extend(load_bytes(set(R2, u32::from(alike.at)), NESTED_AT));
    enter.push(skip_unless_0(R0, 3 + program.len())); // if it could not
    enter.push(load_half(HASH, NESTED_AT));
    enter.push(add_constant(HASH, u32::from(alike.at))); // where the attribute ends
    enter.push(set(CONST, u32::from(alike.at + ATTR_HEADER))); // where the nested one begins
    program.splice(0..0, enter);
    let none = insn(0x15, (R1, 0), program.len() as i16, 0);
    program.splice(0..0, [load(R1, (VALUE, (SHARES_AT * size_of::<u64>()) as i16)), none]);
    program
}

/// Goes over all of `rest` but its last `found` instructions if the nested attribute is the one; over all of it if
/// there is none; otherwise on, with the next one.
fn look_at_nested(word: u16, rest: usize, found: usize) -> Vec<u64> {
    let next = [
        load_half(R1, NESTED_AT),
        add_constant(R1, 3),
        and(R1, !3), // the padding
        add(CONST, R1),
    ];
    let is_it = rest - found + next.len();
    let mut program = vec![
        load_half(R1, NESTED_AT + 2),
        and(R1, TYPE_MASK),
        insn(0x15, (R1, 0), is_it as i16, u32::from(word)),
    ];
    program.extend(next);
    program.insert(0, skip_unless_0(R0, program.len() + rest)); // if it could not
    let mut load = vec![set(R4, NESTED_LEN)];
    load.extend(load_bytes(mov(R2, CONST), NESTED_AT));
    program.splice(0..0, load);
    let is_past = insn(0x2d, (R1, HASH), (program.len() + rest) as i16, 0);
    program.splice(0..0, [mov(R1, CONST), add_constant(R1, NESTED_LEN), is_past]);
    program
}

/// Draws a lot, and looks for the share of the word.
fn draw() -> Vec<u64> {
    let mut program = vec![insn(0x61, (CONST, FRAME), NESTED_AT + 4, 0), call(GET_PRANDOM_U32)];
    for share in SHARES_AT..SHARES_AT + SHARES_MAX {
        program.extend([
            load(R1, (VALUE, (share * size_of::<u64>()) as i16)),
            mov(R2, R1),
            shift_right(R2, HALF),
            insn(0x5d, (R2, CONST), 5, 0), // it is another one's
            shift_left(R1, HALF),
            shift_right(R1, HALF),
            insn(0x3d, (R0, R1), 2, 0), // it is let in
            set(R0, 0),
            EXIT,
        ]);
    }
    program
}

/// Loads R4 bytes of the message to `to` on the stack; `at` sets R2 to where they begin.
fn load_bytes(at: u64, to: i16) -> [u64; 5] {
    let add_to = add_constant(R3, i32::from(to).cast_unsigned());
    [mov(R1, MESSAGE), at, mov(R3, FRAME), add_to, call(SKB_LOAD_BYTES)]
}

/// As much of the length of the attribute's value as counts to R4, or over so many instructions if it has none.
fn length_or_skip(alike: Alike, skip: i16) -> Vec<u64> {
    let mut program = vec![set(R4, 2)];
    program.extend(load_bytes(set(R2, u32::from(alike.at)), LEN_AT));
    program.push(insn(0x55, (R0, 0), skip + 5, 0)); // if it could not
    program.push(load_half(R4, LEN_AT));
    program.push(insn(0xb5, (R4, 0), skip + 3, u32::from(ATTR_HEADER))); // unless it is more
    program.push(insn(0x17, (R4, 0), 0, u32::from(ATTR_HEADER))); // subtract
    program.push(insn(0xb5, (R4, 0), 1, alike.max() as u32)); // unless it is more
    program.push(set(R4, alike.max() as u32));
    program
}

/// R4 bytes of the attribute's value to the stack; past what follows but [`record`] if there are not so many.
fn take_attr(alike: Alike) -> Vec<u64> {
    let mut program = load_bytes(set(R2, u32::from(alike.at + ATTR_HEADER)), WORDS_AT).to_vec();
    // The constant, three for each word, the end.
    program.push(insn(0x55, (R0, 0), 2 + 3 * WORDS_MAX as i16 + 5, 0));
    program
}

fn wide(dst: u8, src: u8, value: u64) -> [u64; 2] {
    [insn(0x18, (dst, src), 0, value as u32), insn(0, (0, 0), 0, (value >> 32) as u32)]
}

fn record() -> Vec<u64> {
    const FETCH_ADD: u32 = 1;
    let word = size_of::<u64>() as i16;
    let (ring, buckets) =
        (HEADER as i16 * word, ((HEADER + RING as usize) * size_of::<u64>()) as u32);
    let mut program = vec![call(KTIME_GET_NS), mov(CONST, R0)];
    program.extend([
        set(R1, 1),
        insn(0xdb, (VALUE, R1), 0, FETCH_ADD), // R1 = how many there were; and one more
        mov(R2, R1),
        add_constant(R2, 1), // counted from 1
        and(R1, RING as u32 - 1),
        shift_left(R1, 3),
        mov(R3, VALUE),
        add(R3, R1),
        store((R3, ring), CONST),
        and(HASH, BUCKETS as u32 - 1),
        shift_left(HASH, 3),
        add(VALUE, HASH),
        add_constant(VALUE, buckets), // further than an instruction's offset goes
        store((VALUE, 0), R2),
        insn(0xb4, (R0, 0), 0, u32::MAX), // all of the message
        EXIT,
    ]);
    program
}
