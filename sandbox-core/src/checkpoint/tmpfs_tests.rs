use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn saved(from: &Path) -> Result<File> {
    let archive = tempfile::tempfile().unwrap();
    let root = File::open(from).unwrap();
    save(root.as_fd(), archive.try_clone().unwrap())?;
    let mut archive = archive;
    archive.rewind().unwrap();
    Ok(archive)
}

fn same(owner: Owner) -> Option<Owner> {
    Some(owner)
}

fn unpacked(archive: File) -> Result<TempDir> {
    let into = in_memory();
    unpack(archive, File::open(into.path()).unwrap().as_fd(), &same)?;
    Ok(into)
}

/// Kind, name, link and content.
type Any<'a> = (EntryType, &'a [u8], &'a [u8], &'a [u8]);

/// Makes an archive whose names nothing checks.
fn archive(entries: &[Any<'_>]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    for (kind, name, link, content) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(rustix::process::getuid().as_raw().into());
        header.set_gid(rustix::process::getgid().as_raw().into());
        header.set_mtime(1);
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        file.write_all(header.as_bytes()).unwrap();
        file.write_all(content).unwrap();
        file.write_all(&vec![0; content.len().next_multiple_of(512) - content.len()]).unwrap();
    }
    file.rewind().unwrap();
    file
}

#[test]
fn what_is_in_memory_comes_back_as_it_was() {
    let from = in_memory();
    let at = |name: &str| from.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::write(at("a/b/file"), "content").unwrap();
    fs::set_permissions(at("a/b/file"), Permissions::from_mode(0o4750)).unwrap();
    fs::hard_link(at("a/b/file"), at("again")).unwrap();
    symlink("../../etc/passwd", at("a/link")).unwrap();
    mknodat(rustix::fs::CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o622), 0).unwrap();
    let long = "n".repeat(250);
    fs::write(at(&long), "long").unwrap();
    let hole = File::create(at("hole")).unwrap();
    hole.write_all_at(b"end", 64 << 20).unwrap();
    fs::write(at("zero"), vec![0; 10_000]).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    fs::set_permissions(from.path(), Permissions::from_mode(0o1777)).unwrap();
    File::open(at("a")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();

    let archive = saved(from.path()).unwrap();
    assert!(archive.metadata().unwrap().len() < 100_000, "holes take no room");
    let to = unpacked(archive).unwrap();
    let at = |name: &str| to.path().join(name);
    let file = fs::metadata(at("a/b/file")).unwrap();
    assert_eq!(fs::read(at("a/b/file")).unwrap(), b"content");
    assert_eq!((file.mode() & 0o7777, file.nlink()), (0o4750, 2));
    assert_eq!(file.ino(), fs::metadata(at("again")).unwrap().ino());
    assert_eq!(fs::read_link(at("a/link")).unwrap(), Path::new("../../etc/passwd"));
    let fifo = fs::symlink_metadata(at("fifo")).unwrap();
    assert!(fifo.file_type().is_fifo());
    assert_eq!(fifo.mode(), fs::symlink_metadata(from.path().join("fifo")).unwrap().mode());
    assert_eq!(fs::read(at(&long)).unwrap(), b"long");
    let hole = fs::metadata(at("hole")).unwrap();
    assert_eq!(hole.len(), (64 << 20) + 3);
    assert!(hole.blocks() < 1000, "a hole is one again");
    assert_eq!(fs::read(at("zero")).unwrap(), vec![0; 10_000]);
    assert!(!at("socket").exists());
    assert_eq!(fs::metadata(to.path()).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(fs::metadata(at("a")).unwrap().mtime(), 0);
}

#[test]
fn what_cannot_be_carried_is_refused_by_name() {
    let from = in_memory();
    let deep = (0..MAX_DEPTH + 2).fold(from.path().to_owned(), |path, _| path.join("d"));
    fs::create_dir_all(deep).unwrap();
    let error = saved(from.path()).unwrap_err().to_string();
    assert!(error.contains("deeper than"), "{error}");
    let from = in_memory();
    File::create(from.path().join("huge")).unwrap().set_len(MAX_BYTES + 1).unwrap();
    let error = saved(from.path()).unwrap_err().to_string();
    assert!(error.contains("\"huge\""), "{error}");
}

#[test]
fn an_archive_names_nothing_outside() {
    let outside = in_memory();
    fs::write(outside.path().join("kept"), "kept").unwrap();
    let place = outside.path().as_os_str().as_bytes();
    let inside = [place, b"/kept"].concat();
    let (file, dir, link, symbolic) =
        (EntryType::Regular, EntryType::Directory, EntryType::Link, EntryType::Symlink);
    let hostile: Vec<Vec<Any<'_>>> = vec![
        vec![(file, b"../x", b"", b"x")],
        vec![(file, b"a/../../x", b"", b"x")],
        vec![(file, &inside, b"", b"x")],
        vec![(symbolic, b"s", place, b""), (file, b"s/kept", b"", b"x")],
        vec![(symbolic, b"s", &inside, b""), (file, b"s", b"", b"x")],
        vec![(symbolic, b"s", place, b""), (dir, b"s", b"", b"")],
        vec![(symbolic, b"s", place, b""), (dir, b"s/made", b"", b"")],
        vec![(link, b"l", &inside, b"")],
        vec![(symbolic, b"s", place, b""), (link, b"l", b"s/kept", b"")],
        vec![(link, b"l", b"../kept", b"")],
        vec![(EntryType::Block, b"sda", b"", b"")],
        vec![(EntryType::Char, b"mem", b"", b"")],
        vec![(EntryType::XHeader, b"x", b"", b"30 path=/etc/passwd\n")],
    ];
    for entries in hostile {
        let result = unpacked(archive(&entries));
        assert!(result.is_err(), "{entries:?}");
        let left: Vec<_> =
            fs::read_dir(outside.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["kept"], "{entries:?}");
        assert_eq!(fs::read(outside.path().join("kept")).unwrap(), b"kept");
        assert_eq!(fs::metadata(outside.path().join("kept")).unwrap().nlink(), 1);
    }
}

#[test]
fn an_archive_is_bounded() {
    let name = vec![b'n'; 1 << 20];
    let long = archive(&[(EntryType::GNULongName, b"././@LongLink", b"", &name)]);
    assert!(unpacked(long).unwrap_err().to_string().contains("LongName"));
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_size(u64::MAX / 2);
    header.set_cksum();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.rewind().unwrap();
    assert!(unpacked(file).unwrap_err().to_string().contains("bytes"));
    let cut = archive(&[(EntryType::Regular, b"f", b"", &[7; 4096])]);
    cut.set_len(1024).unwrap();
    assert!(unpacked(cut).is_err());
}

#[test]
fn an_owner_that_does_not_exist_is_refused() {
    let archive = archive(&[(EntryType::Regular, b"f", b"", b"x")]);
    let into = in_memory();
    let error = unpack(archive, File::open(into.path()).unwrap().as_fd(), &|_| None);
    assert!(error.unwrap_err().to_string().contains("does not have"));
}

proptest! {
    #[test]
    fn whatever_the_bytes_nothing_panics(
        headers in prop::collection::vec((0..20_u8, "[a-z./]{0,12}", 0..600_usize), 0..5),
        noise in prop::collection::vec((0..3000_usize, any::<u8>()), 0..4),
    ) {
        let kinds: Vec<_> = headers
            .iter()
            .map(|(kind, name, size)| {
                let kind = EntryType::new(b"01234567LKSxgV\0 ,~A"[usize::from(*kind) % 19]);
                (kind, name.as_bytes().to_vec(), vec![b'1'; *size])
            })
            .collect();
        let entries: Vec<_> = kinds
            .iter()
            .map(|(kind, name, content)| (*kind, name.as_slice(), b"x".as_slice(), content.as_slice()))
            .collect();
        let file = archive(&entries);
        for (at, byte) in noise {
            file.write_all_at(&[byte], at as u64).unwrap();
        }
        let _ = unpacked(file);
    }
}
