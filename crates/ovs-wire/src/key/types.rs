//! Values inside flow keys that have a text form of their own.

use std::fmt;
use std::str::FromStr;

use crate::WireError;

/// An Ethernet address, in the order of the wire. Prints and parses as `02:00:00:00:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// `ff:ff:ff:ff:ff:ff`; as a mask: every bit.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether the group bit is set; broadcast is a multicast address.
    pub fn is_multicast(&self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether this is the broadcast address.
    pub fn is_broadcast(&self) -> bool {
        *self == Self::BROADCAST
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if i > 0 { ":" } else { "" })?;
        }
        Ok(())
    }
}

impl FromStr for MacAddr {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Self, WireError> {
        let invalid = |offset, why| WireError::Invalid { what: "Ethernet address", offset, why };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        let mut at = 0;
        for byte in &mut bytes {
            let part = parts.next().ok_or(invalid(at, "has fewer than six bytes"))?;
            let digits = (1..=2).contains(&part.len())
                && part.bytes().all(|digit| digit.is_ascii_hexdigit());
            if !digits {
                return Err(invalid(at, "is not one or two hexadecimal digits"));
            }
            *byte = u8::from_str_radix(part, 16)
                .map_err(|_| invalid(at, "is not one or two hexadecimal digits"))?;
            at += part.len() + 1;
        }
        parts.next().map_or(Ok(Self(bytes)), |_| Err(invalid(at, "has more than six bytes")))
    }
}

/// A VLAN tag control information field in host order: priority (3 bits), the bit that the kernel
/// uses to say "there is a tag" (0x1000), VLAN id (12 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VlanTci(pub u16);

impl VlanTci {
    /// `VLAN_CFI_MASK`: set in every key and push action of a tagged packet, and required in masks
    /// (`parse_vlan_from_nlattrs`, `net/openvswitch/flow_netlink.c`).
    pub const PRESENT: u16 = 0x1000;
    /// Bits of the VLAN id.
    pub const VID_MASK: u16 = 0x0fff;
    /// Bits of the priority.
    pub const PCP_MASK: u16 = 0xe000;

    /// A tag that is present. Bits of `vid` above 12 and of `pcp` above 3 are dropped.
    pub const fn new(vid: u16, pcp: u8) -> Self {
        Self((vid & Self::VID_MASK) | ((pcp as u16 & 7) << 13) | Self::PRESENT)
    }

    /// VLAN id, 0-4095; 0 is a priority tag.
    pub const fn vid(self) -> u16 {
        self.0 & Self::VID_MASK
    }

    /// Priority code point, 0-7.
    pub const fn pcp(self) -> u8 {
        (self.0 >> 13) as u8
    }

    /// Whether there is a tag: false for the empty VLAN header of a truncated packet.
    pub const fn present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_address_survives_text() {
        let mac: MacAddr = "02:00:00:00:00:a1".parse().unwrap();
        assert_eq!(mac, MacAddr([2, 0, 0, 0, 0, 0xa1]));
        assert_eq!(mac.to_string(), "02:00:00:00:00:a1");
        assert!(!mac.is_multicast());
        assert!(MacAddr::BROADCAST.is_multicast() && MacAddr::BROADCAST.is_broadcast());
    }

    #[test]
    fn a_bad_mac_address_says_where() {
        let err = |text: &str| text.parse::<MacAddr>().unwrap_err().to_string();
        assert_eq!(err("02:00"), "Ethernet address at byte 6 has fewer than six bytes");
        assert_eq!(
            err("02:+0:0:0:0:0"),
            "Ethernet address at byte 3 is not one or two hexadecimal digits"
        );
        assert_eq!(err("1:2:3:4:5:6:7"), "Ethernet address at byte 12 has more than six bytes");
    }

    #[test]
    fn a_tci_has_three_parts() {
        let tci = VlanTci::new(5, 3);
        assert_eq!((tci.vid(), tci.pcp(), tci.present()), (5, 3, true));
        assert!(!VlanTci(5).present());
    }
}
