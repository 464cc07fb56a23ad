//! Kernel modules: which a guest loads, what they depend on, in what order.
//!
//! Packages carry no `modules.dep` (it is made when they are installed), so dependencies are read
//! from each module's own `.modinfo` section.

use crate::{cache, unpack};
use anyhow::{Context, Result, bail};
use object::{Object as _, ObjectSection as _};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Without these a run says nothing.
const REQUIRED: &[&str] = &["openvswitch", "veth"];
/// Loaded where the kernel has them as modules. Tunnel vports would otherwise be asked for through
/// a `modprobe` that a guest has not got.
const WANTED: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "vport_vxlan",
    "vport_geneve",
    "vport_gre",
    "dummy",
    "tun",
    "8021q",
    "bridge",
    "ifb",
    "nlmon",
    "af_packet",
    "psample",
    "sch_netem",
    "sch_tbf",
    "sch_ingress",
    "cls_u32",
    "cls_matchall",
    "act_mirred",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "inet_diag",
];

/// No devices that nobody asked for.
const PARAMS: &[(&str, &str)] = &[("dummy", "numdummies=0"), ("ifb", "numifbs=0")];

/// A module in the order of loading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loadable {
    pub(crate) name: String,
    /// Unpacked, on this machine.
    pub(crate) file: PathBuf,
    pub(crate) params: &'static str,
    pub(crate) required: bool,
}

/// Everything a guest loads, dependencies first, unpacked below `keep`.
pub(crate) fn load_order(tree: &Path, keep: &Path) -> Result<Vec<Loadable>> {
    let files = index(&tree.join("kernel"))?;
    let mut order = Order { files: &files, keep, done: Vec::new(), open: Vec::new() };
    // The port to the host first: what fails later can then be said.
    for name in WANTED.iter().filter(|name| name.starts_with("virtio")) {
        order.add(name, false)?;
    }
    for name in REQUIRED {
        if !files.contains_key(*name) {
            bail!("{} has no module {name}", tree.display());
        }
        order.add(name, true)?;
    }
    for name in WANTED {
        order.add(name, false)?;
    }
    Ok(order.done)
}

/// Module files by name. A file may spell `-` what the kernel calls `_`.
fn index(dir: &Path) -> Result<HashMap<String, PathBuf>> {
    let mut found = HashMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        let entries =
            fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                pending.push(path);
            } else if let Some(name) = module_name(&path) {
                found.insert(name, path);
            }
        }
    }
    Ok(found)
}

fn module_name(path: &Path) -> Option<String> {
    let (stem, ending) = path.file_name()?.to_str()?.split_once(".ko")?;
    ["", ".xz", ".zst"].contains(&ending).then(|| stem.replace('-', "_"))
}

struct Order<'a> {
    files: &'a HashMap<String, PathBuf>,
    keep: &'a Path,
    done: Vec<Loadable>,
    open: Vec<String>,
}

impl Order<'_> {
    /// Adds a module behind what it depends on. One that is not in the tree is built in, or absent.
    fn add(&mut self, name: &str, required: bool) -> Result<()> {
        let Some(packed) = self.files.get(name) else { return Ok(()) };
        if self.done.iter().any(|module| module.name == name) {
            return Ok(());
        }
        if self.open.iter().any(|other| other == name) {
            bail!("modules depend on each other in a circle: {} -> {name}", self.open.join(" -> "));
        }
        let file = unpacked(packed, &self.keep.join(format!("{name}.ko")))?;
        self.open.push(name.to_owned());
        for dependency in depends(&file)? {
            self.add(&dependency, required)?;
        }
        self.open.pop();
        let params = PARAMS.iter().find(|(module, _)| *module == name).map_or("", |(_, p)| p);
        self.done.push(Loadable { name: name.to_owned(), file, params, required });
        Ok(())
    }
}

fn unpacked(packed: &Path, keep: &Path) -> Result<PathBuf> {
    if packed.extension().is_some_and(|e| e == "ko") {
        return Ok(packed.to_owned());
    }
    if !keep.exists() {
        let bytes =
            fs::read(packed).with_context(|| format!("cannot read {}", packed.display()))?;
        let plain = unpack::unpack(&bytes)
            .with_context(|| format!("cannot unpack {}", packed.display()))?
            .with_context(|| format!("{} is neither xz nor zstd", packed.display()))?;
        cache::write_file(keep, &plain)?;
    }
    Ok(keep.to_owned())
}

fn depends(file: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let parsed = object::File::parse(&*bytes)
        .with_context(|| format!("{} is no ELF file", file.display()))?;
    let section = parsed
        .section_by_name(".modinfo")
        .with_context(|| format!("{} has no .modinfo: not a kernel module", file.display()))?;
    Ok(modinfo_depends(section.data()?))
}

/// The `depends=` entry among the NUL-terminated `key=value` strings.
fn modinfo_depends(section: &[u8]) -> Vec<String> {
    let mut entries = section.split(|byte| *byte == 0);
    let list = entries.find_map(|entry| entry.strip_prefix(b"depends=")).unwrap_or(b"");
    let names = String::from_utf8_lossy(list);
    let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
    names.map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let section = b"license=GPL\0depends=nf_conntrack,nf-nat, nsh\0\0name=openvswitch\0";
        assert_eq!(modinfo_depends(section), ["nf_conntrack", "nf_nat", "nsh"]);
        assert!(modinfo_depends(b"depends=\0").is_empty());
        assert!(modinfo_depends(b"name=x").is_empty());
    }

    #[test]
    fn names_follow_the_kernel() {
        let name = |file: &str| module_name(Path::new(file));
        assert_eq!(name("/k/vport-gre.ko.xz").as_deref(), Some("vport_gre"));
        assert_eq!(name("8021q.ko").as_deref(), Some("8021q"));
        assert_eq!(name("a.ko.zst").as_deref(), Some("a"));
        assert_eq!(name("a.ko.old"), None);
        assert_eq!(name("modules.dep"), None);
    }

    /// The least ELF that holds a `.modinfo`.
    fn module(depends: &str) -> Vec<u8> {
        let info = format!("depends={depends}\0");
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut elf = vec![0u8; 64];
        elf[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
        elf[16..24].copy_from_slice(&[1, 0, 62, 0, 1, 0, 0, 0]);
        let (info_at, names_at) = (64, 64 + info.len());
        let table_at = names_at + names.len();
        elf[40..48].copy_from_slice(&(table_at as u64).to_le_bytes());
        elf[52..64].copy_from_slice(&[64, 0, 0, 0, 0, 0, 64, 0, 3, 0, 2, 0]);
        elf.extend_from_slice(info.as_bytes());
        elf.extend_from_slice(names);
        elf.extend_from_slice(&[0; 64]);
        for (name, kind, at, size) in
            [(1u32, 1u32, info_at, info.len()), (10, 3, names_at, names.len())]
        {
            let mut header = vec![0u8; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            elf.extend_from_slice(&header);
        }
        elf
    }

    fn tree(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let net = dir.path().join("kernel/net");
        fs::create_dir_all(&net).unwrap();
        for (name, depends) in modules {
            fs::write(net.join(format!("{name}.ko")), module(depends)).unwrap();
        }
        dir
    }

    fn names(dir: &tempfile::TempDir) -> Result<Vec<String>> {
        let order = load_order(dir.path(), &dir.path().join("ko"))?;
        Ok(order.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let dir = tree(&[
            ("openvswitch", "nf_nat,nsh,absent"),
            ("nf_nat", "nf_conntrack"),
            ("nf_conntrack", ""),
            ("nsh", ""),
            ("veth", ""),
            ("vport-gre", "openvswitch,gre"),
            ("gre", ""),
        ]);
        assert_eq!(
            names(&dir).unwrap(),
            ["nf_conntrack", "nf_nat", "nsh", "openvswitch", "veth", "gre", "vport_gre"]
        );
    }

    #[test]
    fn a_circle_is_an_error() {
        let dir = tree(&[("openvswitch", "a"), ("a", "b"), ("b", "a"), ("veth", "")]);
        assert!(names(&dir).unwrap_err().to_string().contains("circle"));
    }

    #[test]
    fn a_kernel_without_openvswitch_is_an_error() {
        let dir = tree(&[("veth", "")]);
        assert!(names(&dir).unwrap_err().to_string().contains("no module openvswitch"));
    }
}
