//! How a golden file is written, compared and read.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use data_encoding::HEXLOWER;

/// Lines of `name: hex`, names unique, with comments; long values run over several lines that start with a space.
#[derive(Default)]
pub struct Golden {
    text: String,
}

impl Golden {
    pub fn new(about: &str) -> Self {
        let mut text = String::new();
        about.lines().for_each(|line| writeln!(text, "# {line}").unwrap());
        Self { text }
    }

    pub fn put(&mut self, name: &str, bytes: impl AsRef<[u8]>) {
        write!(self.text, "{name}:").unwrap();
        let hex = HEXLOWER.encode(bytes.as_ref());
        if hex.len() <= 64 {
            writeln!(self.text, " {hex}").unwrap();
        } else {
            hex.as_bytes()
                .chunks(96)
                .for_each(|line| write!(self.text, "\n {}", std::str::from_utf8(line).unwrap()).unwrap());
            self.text.push('\n');
        }
    }

    /// What is very long stands there as its BLAKE3 digest: the records have it anyway.
    pub fn put_long(&mut self, name: &str, bytes: &[u8]) {
        if bytes.len() <= 4096 {
            self.put(name, bytes);
        } else {
            self.put(&format!("{name} digest"), blake3::hash(bytes).as_bytes());
        }
    }

    /// Compares with the file, or writes it, and gives what the file says.
    pub fn settle(self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "golden", &format!("{name}.hex")].iter().collect();
        if std::env::var_os("SEALCAST_UPDATE_GOLDEN").is_some_and(|value| value == "1") {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &self.text).unwrap();
        }
        let file = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if let Some((at, (is, was))) = self.text.lines().zip(file.lines()).enumerate().find(|(_, (is, was))| is != was)
        {
            panic!("{}:{}: the bytes have changed\n now: {is}\nfile: {was}", path.display(), at + 1);
        }
        assert_eq!(self.text.len(), file.len(), "{}: the file ends elsewhere", path.display());
        values(&file)
    }

    /// Writes what an earlier version wrote once and for all: never over a file that is there. Gives what the file says.
    pub fn keep(self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "golden", &format!("{name}.hex")].iter().collect();
        if !path.exists() && std::env::var_os("SEALCAST_UPDATE_GOLDEN").is_some_and(|value| value == "1") {
            std::fs::write(&path, &self.text).unwrap();
        }
        values(&std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }
}

/// What the lines of a file say, by name.
fn values(file: &str) -> BTreeMap<String, Vec<u8>> {
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let mut current = String::new();
    for line in file.lines().filter(|line| !line.starts_with('#')) {
        match line.split_once(':') {
            Some((name, hex)) => {
                current = name.to_owned();
                assert!(values.insert(current.clone(), hex.trim().to_owned()).is_none(), "{name} stands twice");
            }
            None => values.get_mut(&current).unwrap().push_str(line.trim()),
        }
    }
    values.into_iter().map(|(name, hex)| (name, HEXLOWER.decode(hex.as_bytes()).unwrap())).collect()
}
