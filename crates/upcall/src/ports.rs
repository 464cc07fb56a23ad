//! The ports of a datapath, as handlers see them.

use std::collections::HashMap;

/// A port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Number in the datapath.
    pub number: u32,
    /// Name of its device.
    pub name: String,
}

/// A snapshot of a datapath's ports, by number. Port 0 is the datapath's own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ports {
    list: Vec<Port>,
    /// Numbers by the names that ports were asked for by.
    asked_for: HashMap<String, u32>,
}

impl Ports {
    /// A snapshot of `list`.
    pub fn new(mut list: Vec<Port>) -> Self {
        list.sort_by_key(|p| p.number);
        Self { list, asked_for: HashMap::new() }
    }

    /// The same, knowing which ports were asked for by which names.
    pub(crate) fn with_names(self, asked_for: HashMap<String, u32>) -> Self {
        Self { asked_for, ..self }
    }

    /// The ports, by number.
    pub fn iter(&self) -> std::slice::Iter<'_, Port> {
        self.list.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The port with this number.
    pub fn by_number(&self, number: u32) -> Option<&Port> {
        self.list.binary_search_by_key(&number, |p| p.number).ok().map(|at| &self.list[at])
    }

    /// The port that was asked for by this name ([`crate::Builder::port`]), whatever its device is
    /// called now; else the port whose device has this name. What a configuration by name means.
    pub fn by_configured_name(&self, name: &str) -> Option<&Port> {
        match self.asked_for.get(name) {
            Some(number) => self.by_number(*number),
            None => self.by_name(name),
        }
    }

    /// The port whose device has this name now.
    pub fn by_name(&self, name: &str) -> Option<&Port> {
        self.list.iter().find(|p| p.name == name)
    }
}

impl<'a> IntoIterator for &'a Ports {
    type Item = &'a Port;
    type IntoIter = std::slice::Iter<'a, Port>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_name_stays_with_its_port() {
        let port = |number, name: &str| Port { number, name: name.to_owned() };
        let ports = Ports::new(vec![port(2, "a"), port(1, "renamed")]);
        assert_eq!(ports.by_configured_name("a").map(|port| port.number), Some(2));
        let ports = ports.with_names([("a".to_owned(), 1)].into());
        assert_eq!(ports.by_configured_name("a").map(|port| port.number), Some(1));
        assert_eq!(ports.by_name("a").map(|port| port.number), Some(2));
        assert_eq!(ports.by_configured_name("b"), None);
    }
}
