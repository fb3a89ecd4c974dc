use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;

fn image(magic: &[u32], entries: &[Vec<u8>]) -> Vec<u8> {
    let mut image: Vec<u8> = magic.iter().flat_map(|magic| magic.to_le_bytes()).collect();
    for entry in entries {
        image.extend(u32::try_from(entry.len()).unwrap().to_le_bytes());
        image.extend(entry);
    }
    image
}

fn message(put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut message = Vec::new();
    put(&mut message);
    message
}

fn ids(mount: u64, user: u64) -> Vec<u8> {
    message(|m| {
        for (number, value) in [(1, 1), (2, 2), (3, 3), (4, 4), (9, mount), (10, user)] {
            put_number(number, value, m);
        }
    })
}

fn made(kind: Image, old: &[u8]) -> Result<Vec<u8>> {
    let mut new = Vec::new();
    portable(kind, old, &mut new).map(|()| new)
}

/// A folder of images as criu leaves it.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: Vec<u8>| fs::write(folder.path().join(name), bytes).unwrap();
    write("ids-1.img", image(&[COMMON, IDS], &[ids(12, 7)]));
    let inventory = message(|m| {
        put_number(1, 2, m);
        put_message(3, &ids(5, 1), m);
        put_number(99, 3, m);
    });
    write("inventory.img", image(&[INVENTORY], &[inventory]));
    let range = IdMapping { inside: 0, outside: 1 << 30, size: 65536 };
    let mappings = Mappings { uids: vec![range], gids: vec![range] };
    write("userns-7.img", user_namespace_image(&mappings));
    let regular = message(|m| {
        put_number(1, 1, m);
        put_message(6, b"/etc/passwd", m);
        put_number(7, 311, m);
    });
    let socket = message(|m| {
        put_number(2, 8, m);
        put_number(17, 311, m);
    });
    let entries = [(3, &regular), (16, &socket), (4, &socket)]
        .map(|(number, inner)| message(|m| put_message(number, inner, m)));
    write("files.img", image(&[COMMON, FILES], &entries));
    folder
}

#[test]
fn images_are_rewritten_once_and_for_all() {
    let folder = folder();
    let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
    let handle = File::open(folder.path()).unwrap();
    make_portable(handle.as_fd()).unwrap();
    let inventory = read("inventory.img");
    let mut entries = &inventory[4..];
    let entry = next_entry(&mut entries).unwrap().unwrap();
    let own = fields(&entry).unwrap().into_iter().find(|f| f.number == 3).unwrap();
    assert_eq!(number_in(own.value.message().unwrap(), 9).unwrap(), Some(12));
    assert_eq!(number_in(own.value.message().unwrap(), 10).unwrap(), Some(7));
    assert_eq!(number_in(&entry, 99).unwrap(), Some(3));
    let range = IdMapping { inside: 0, outside: 0, size: 65536 };
    let same = Mappings { uids: vec![range], gids: vec![range] };
    let mut users = &read("userns-7.img")[8..];
    let users = next_entry(&mut users).unwrap().unwrap();
    let expected = user_namespace_image(&same);
    let mut expected = &expected[8..];
    let expected = next_entry(&mut expected).unwrap().unwrap();
    for (new, old) in fields(&users).unwrap().iter().zip(fields(&expected).unwrap()) {
        for number in 1..=3 {
            let of = |f: Value<'_>| number_in(f.message().unwrap(), number).unwrap();
            assert_eq!(of(new.value), of(old.value));
        }
    }
    let files = read("files.img");
    let mut entries = &files[8..];
    for (number, mount, is_there) in [(3, 7, false), (16, 17, false), (4, 17, true)] {
        let entry = next_entry(&mut entries).unwrap().unwrap();
        let field = fields(&entry).unwrap()[0];
        assert_eq!(field.number, number);
        let found = number_in(field.value.message().unwrap(), mount).unwrap();
        assert_eq!(found.is_some(), is_there);
    }
    make_portable(handle.as_fd()).unwrap();
    assert_eq!((read("inventory.img"), read("files.img")), (inventory, files));
    let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.count(), 4, "nothing else is left");
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    type Spoil = fn(&std::path::Path);
    let spoilt: [(Spoil, &str); 8] = [
        (|f| fs::remove_file(f.join("inventory.img")).unwrap(), "no file inventory.img"),
        (|f| fs::write(f.join("files.img"), b"tar").unwrap(), "files.img"),
        (|f| fs::remove_file(f.join("userns-7.img")).unwrap(), "userns-7.img"),
        (|f| relink(f, "files.img"), "no regular file"),
        (|f| relink(f, "ids-1.img"), "no regular file"),
        (|f| fs::write(f.join("ids-1.img"), vec![0; 20 << 20]).unwrap(), "longer than"),
        (|f| extend(f, "files.img", &[0xff; 8]), "more than"),
        (|f| extend(f, "files.img", &[9, 0, 0, 0, 1]), "midst of an entry"),
    ];
    for (spoil, expected) in spoilt {
        let folder = folder();
        spoil(folder.path());
        let handle = File::open(folder.path()).unwrap();
        let error = make_portable(handle.as_fd()).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        let left = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(left.into_iter().all(|name| !name.to_string_lossy().ends_with(".new")));
    }
}

fn relink(folder: &std::path::Path, name: &str) {
    fs::rename(folder.join(name), folder.join("elsewhere")).unwrap();
    symlink("elsewhere", folder.join(name)).unwrap();
}

fn extend(folder: &std::path::Path, name: &str, bytes: &[u8]) {
    let all = [&fs::read(folder.join(name)).unwrap(), bytes].concat();
    fs::write(folder.join(name), all).unwrap();
}

/// A message with any fields.
fn any_message() -> impl Strategy<Value = Vec<u8>> {
    let numbers = (1..30_u32, any::<u64>()).prop_map(|(n, v)| message(|m| put_number(n, v, m)));
    let leaf = prop::collection::vec(numbers, 0..6).prop_map(|all| all.concat());
    leaf.prop_recursive(2, 20, 5, |inner| {
        let field = (1..30_u32, inner).prop_map(|(n, v)| message(|m| put_message(n, &v, m)));
        prop::collection::vec(field, 0..5).prop_map(|all| all.concat())
    })
}

fn kinds() -> [(Image, &'static [u32]); 3] {
    [
        (
            Image::Inventory { ids: RootIds { mount_namespace: 9, user_namespace: Some(3) } },
            &[INVENTORY],
        ),
        (Image::UserNamespace, &[COMMON, USER_NAMESPACE]),
        (Image::Files, &[COMMON, FILES]),
    ]
}

proptest! {
    #[test]
    fn whatever_the_bytes_nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for (kind, magic) in kinds() {
            let _ = made(kind, &bytes);
            let _ = made(kind, &[image(magic, &[]), bytes.clone()].concat());
            let _ = made(kind, &image(magic, std::slice::from_ref(&bytes)));
        }
        let _ = RootIds::parse(&bytes);
        let _ = RootIds::parse(&image(&[COMMON, IDS], &[bytes]));
    }

    #[test]
    fn a_second_time_changes_nothing(entries in prop::collection::vec(any_message(), 0..4)) {
        for (kind, magic) in kinds() {
            if let Ok(once) = made(kind, &image(magic, &entries)) {
                prop_assert_eq!(made(kind, &once).unwrap(), once);
            }
        }
    }

    #[test]
    fn what_is_not_rewritten_stays(entry in any_message()) {
        let made = made(Image::Files, &image(&[COMMON, FILES], std::slice::from_ref(&entry)));
        let touched = [3, TIMER, 16];
        let kept = |message: &[u8]| -> Vec<Vec<u8>> {
            let others = fields(message).unwrap().into_iter();
            let others = others.filter(|field| !touched.contains(&field.number));
            others.map(|field| field.raw.to_vec()).collect()
        };
        if let Ok(made) = made {
            let new = next_entry(&mut &made[8..]).unwrap().unwrap();
            prop_assert_eq!(kept(&new), kept(&entry));
        }
    }
}

/// Its fields are expirations, seconds and nanoseconds left, and those of the interval.
#[test]
fn a_timer_that_has_expired_unread_ticks_on() {
    let entry = |numbers: [u64; 5]| {
        let timer = message(|m| {
            (5..)
                .zip([numbers[0], 0, numbers[1], numbers[2], numbers[3], numbers[4]])
                .for_each(|(field, value)| put_number(field, value, m));
        });
        image(&[COMMON, FILES], &[message(|m| put_message(TIMER, &timer, m))])
    };
    let read = |image: &[u8]| {
        let mut entries = &image[8..];
        let entry = next_entry(&mut entries).unwrap().unwrap();
        let timer = fields(&entry).unwrap()[0].value.message().unwrap();
        [5, 7, 8, 9, 10].map(|field| number_in(timer, field).unwrap().unwrap())
    };
    let of = |numbers| read(&made(Image::Files, &entry(numbers)).unwrap());
    assert_eq!(of([1, 0, 0, 3, 20]), [1, 3, 20, 3, 20]);
    // One that runs, one that is off, and one that has expired for good.
    for as_it_is in [[1, 2, 5, 3, 20], [0, 0, 0, 3, 20], [1, 0, 0, 0, 0]] {
        assert_eq!(of(as_it_is), as_it_is);
    }
}
