//! Archives of other programs, and damaged ones.

use std::os::unix::fs::FileExt as _;
use std::process::Command;

use super::*;

fn entries(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut archive = Archive::new(bytes);
    let mut found = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let mut content = Vec::new();
        let mut buffer = [0u8; 1000];
        loop {
            match archive.read(&mut buffer)? {
                0 => break,
                length => content.extend_from_slice(&buffer[..length]),
            }
        }
        found.push((entry, content));
    }
    Ok(found)
}

/// What GNU tar makes of a directory in each of its formats.
#[test]
fn gnu_tar_in_every_format() {
    let home = tempfile::tempdir().unwrap();
    let long = "n".repeat(150);
    std::fs::write(home.path().join(&long), "long").unwrap();
    std::os::unix::fs::symlink("t".repeat(120), home.path().join("link")).unwrap();
    let holes = std::fs::File::create(home.path().join("holes")).unwrap();
    holes.set_len(1 << 20).unwrap();
    for at in [0u64, 100_000, 300_000, 500_000, 700_000, 900_000] {
        holes.write_all_at(b"data", at).unwrap();
    }
    let formats: [&[&str]; 5] = [
        &["--format=gnu", "--sparse"],
        &["--format=gnu"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
    ];
    for format in formats {
        let output = Command::new("tar")
            .args(format)
            .arg("-C")
            .arg(home.path())
            .args(["-c", "."])
            .output()
            .unwrap();
        let found = entries(&output.stdout).unwrap();
        let find = |name: &str| {
            found
                .iter()
                .find(|(entry, _)| entry.path.to_string_lossy().ends_with(name))
                .unwrap_or_else(|| panic!("{name} in {format:?}"))
        };
        assert_eq!(find(&long).1, b"long", "{format:?}");
        assert_eq!(find("link").0.link.len(), 120, "{format:?}");
        let (holes, data) = find("holes");
        assert_eq!(holes.size, 1 << 20, "{format:?}");
        match &holes.sparse {
            Some(map) => {
                assert!(data.len() < 1 << 18, "{format:?}");
                let piece = map
                    .iter()
                    .find(|(at, length)| *at <= 500_000 && at + length > 500_000);
                assert!(piece.is_some(), "{format:?}: {map:?}");
            }
            None => assert_eq!(&data[500_000..500_004], b"data", "{format:?}"),
        }
    }
}

fn built(make: impl Fn(&mut ::tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    make(&mut builder);
    builder.into_inner().unwrap()
}

#[test]
fn values_with_newlines_and_fractions() {
    let bytes = built(|builder| {
        let records: [(&str, &[u8]); 4] = [
            ("SCHILY.xattr.user.two", b"a\nb=c\n"),
            ("mtime", b"1700000000.25"),
            ("uid", b"3000000000"),
            ("path", b"named/by pax"),
        ];
        builder.append_pax_extensions(records).unwrap();
        let mut header = ::tar::Header::new_ustar();
        header.set_size(3);
        header.set_mode(0o4755);
        builder
            .append_data(&mut header, "short", b"abc".as_slice())
            .unwrap();
    });
    let found = entries(&bytes).unwrap();
    let (entry, content) = &found[0];
    assert_eq!(entry.path, "named/by pax");
    assert_eq!(entry.mtime, (1_700_000_000, 250_000_000));
    assert_eq!((entry.uid, entry.mode), (3_000_000_000, 0o4755));
    assert_eq!(entry.xattrs[0].1, b"a\nb=c\n");
    assert_eq!(content, b"abc");
}

#[test]
fn damage_is_an_error() {
    let whole = built(|builder| {
        let mut header = ::tar::Header::new_ustar();
        header.set_size(5000);
        builder
            .append_data(&mut header, "f", [7u8; 5000].as_slice())
            .unwrap();
    });
    assert!(matches!(
        entries(&whole[..2000]),
        Err(TarError::Truncated(_))
    ));
    assert!(matches!(
        entries(&whole[..300]),
        Err(TarError::Truncated(_))
    ));
    let mut flipped = whole.clone();
    flipped[3] ^= 1;
    assert!(matches!(entries(&flipped), Err(TarError::Wrong(_))));
    for record in [
        b"99999999999999999999 path=x\n".as_slice(),
        b"3 path=x\n",
        b"9 path=x\n",
        b"path\n",
    ] {
        let bytes = built(|builder| {
            let mut header = ::tar::Header::new_ustar();
            header.set_size(record.len() as u64);
            header.set_entry_type(::tar::EntryType::XHeader);
            builder.append_data(&mut header, "p", record).unwrap();
        });
        let text = String::from_utf8_lossy(record).into_owned();
        let result = entries(&bytes);
        assert_eq!(
            result.is_err(),
            !text.starts_with('9') || text.len() > 10,
            "{text}"
        );
    }
    let endless = built(|builder| {
        let mut header = ::tar::Header::new_ustar();
        header.set_size(8 << 20);
        header.set_entry_type(::tar::EntryType::XHeader);
        header.set_path("p").unwrap();
        header.set_cksum();
        builder
            .append(&header, std::io::repeat(b'x').take(8 << 20))
            .unwrap();
    });
    let error = entries(&endless).unwrap_err().to_string();
    assert!(error.contains("extended header"), "{error}");
}
