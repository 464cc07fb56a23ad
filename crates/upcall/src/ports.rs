//! The ports of a datapath, as handlers see them.

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
}

impl Ports {
    /// A snapshot of `list`.
    pub fn new(mut list: Vec<Port>) -> Self {
        list.sort_by_key(|p| p.number);
        Self { list }
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

    /// The port whose device has this name.
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
