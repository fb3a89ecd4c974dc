use rustix::mount::MountAttrFlags;
use serde_json::json;

use super::*;
use crate::spec::plan::{DeliveredSource, IdMapping, IdmapChoice, MountSource};
use crate::sys::mount::PropagationKind;

const NONE: MountAttrFlags = MountAttrFlags::empty();
const RDONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;
const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
const NOATIME: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOATIME;
const STRICTATIME: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_STRICTATIME;
const ATIME: MountAttrFlags = MountAttrFlags::MOUNT_ATTR__ATIME;

/// ctr's spec with one more mount.
fn with(mount: Value) -> Story {
    Story::of(CTR).set("/mounts/7", mount)
}

fn bind(options: &[&str]) -> Story {
    with(json!({"destination": "/mnt", "source": "shm", "options": options}))
}

fn delivered(story: &Story) -> DeliveredSource {
    story.accepted().host.delivered.pop().expect("a delivered mount").1
}

#[test]
fn boot_makes_the_mounts_of_the_containers_namespaces() {
    let plan = Story::of(RUNC).accepted();
    assert_eq!(mount(&plan, "/proc").source, MountSource::Proc);
    assert_eq!(mount(&plan, "/dev/mqueue").source, MountSource::Mqueue);
    assert_eq!(mount(&plan, "/sys/fs/cgroup").source, MountSource::Cgroup);
    assert_eq!(mount(&plan, "/sys").source, MountSource::Sysfs);
    let MountSource::Devpts(options) = &mount(&plan, "/dev/pts").source else {
        panic!("no devpts");
    };
    assert!(options.contains(&("newinstance".into(), None)));
    assert!(options.contains(&("gid".into(), Some("5".into()))));
    let dev = mount(&plan, "/dev");
    let options =
        vec![("mode".to_string(), Some("755".into())), ("size".into(), Some("65536k".into()))];
    assert_eq!(dev.source, MountSource::Tmpfs { options, copy_up: false });
    assert_eq!((dev.attributes.set, dev.attributes.clear), (NOSUID | STRICTATIME, ATIME));
    let sys = mount(&plan, "/sys").attributes;
    assert_eq!(sys.set, RDONLY | NOSUID | NODEV | NOEXEC);
}

/// The kernel has one number of terminals for all.
#[test]
fn a_devpts_has_its_share_of_the_terminals_unless_the_spec_says_how_many() {
    let most = |options: &[&str]| {
        let story = with(json!({"destination": "/mnt", "type": "devpts", "options": options}));
        let plan = story.accepted();
        let MountSource::Devpts(options) = &mount(&plan, "/mnt").source else {
            panic!("no devpts");
        };
        let most: Vec<_> = options.iter().filter(|(key, _)| key == "max").collect();
        let [(_, Some(most))] = most[..] else { panic!("{options:?}") };
        most.parse::<u32>().expect("a number")
    };
    let of_kernel = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/kernel/pty/{name}")).expect("read it");
        text.trim().parse::<u32>().expect("a number")
    };
    let share = most(&["newinstance"]);
    let all = of_kernel("max").saturating_sub(of_kernel("reserve"));
    assert!(share == 16 || share <= all / 8, "{share} of {all}");
    assert_eq!(most(&["newinstance", "max=2000"]), 2000);
}

#[test]
fn binds_have_their_host_path() {
    let story = bind(&["rbind", "ro", "rslave"]);
    let source = story.bundle.path().join("shm");
    assert_eq!(
        delivered(&story),
        DeliveredSource::Bind { source, recursive: true, idmap: IdmapChoice::Sandbox }
    );
    let plan = story.accepted();
    let planned = mount(&plan, "/mnt");
    assert_eq!(planned.attributes.set, RDONLY);
    assert_eq!(
        planned.propagation.map(|p| (p.kind, p.recursive)),
        Some((PropagationKind::Slave, true))
    );
    assert_eq!(planned.source, MountSource::Delivered);
    let plan = with(
        json!({"destination": "/etc/hosts", "type": "bind", "source": "hosts", "options": []}),
    )
    .accepted();
    assert_eq!(mount(&plan, "/etc/hosts").source, MountSource::Delivered);
    // Without a user namespace there is nothing to map.
    let story = bind(&["bind"]).userns(Userns::Never);
    assert!(matches!(
        delivered(&story),
        DeliveredSource::Bind { recursive: false, idmap: IdmapChoice::None, .. }
    ));
}

#[test]
fn recursive_attributes_are_kept_apart() {
    let attributes =
        mount(&bind(&["rbind", "rro", "rnosuid", "nodev"]).accepted(), "/mnt").attributes;
    assert_eq!((attributes.recursive_set, attributes.set), (RDONLY | NOSUID, NODEV));
    let attributes =
        mount(&bind(&["bind", "rnoatime", "ratime", "rexec"]).accepted(), "/mnt").attributes;
    assert_eq!((attributes.recursive_set, attributes.recursive_clear), (NONE, ATIME | NOEXEC));
}

#[test]
fn the_last_of_contradicting_options_wins() {
    let attributes = |options: &[&str]| {
        let attributes = mount(&bind(options).accepted(), "/mnt").attributes;
        (attributes.set, attributes.clear)
    };
    assert_eq!(attributes(&["bind", "ro", "rw"]), (NONE, RDONLY));
    assert_eq!(attributes(&["bind", "rw", "ro"]), (RDONLY, NONE));
    assert_eq!(attributes(&["bind", "noatime", "strictatime"]), (STRICTATIME, ATIME));
    assert_eq!(attributes(&["bind", "strictatime", "noatime", "relatime"]), (NONE, ATIME));
    assert_eq!(attributes(&["bind", "relatime", "noatime"]), (NOATIME, ATIME));
    let plan = bind(&["bind", "shared", "private"]).accepted();
    assert_eq!(
        mount(&plan, "/mnt").propagation.map(|p| (p.kind, p.recursive)),
        Some((PropagationKind::Private, false))
    );
}

#[test]
fn owners_are_mapped_by_the_mounts_options() {
    let idmap = |story: Story| match delivered(&story) {
        DeliveredSource::Bind { idmap, .. } => idmap,
        other => panic!("{other:?} is no bind"),
    };
    assert_eq!(idmap(bind(&["rbind", "noidmap"])), IdmapChoice::None);
    let IdmapChoice::Mappings { mappings, recursive } = idmap(bind(&["rbind", "ridmap"])) else {
        panic!("no mappings");
    };
    assert!(mappings.uids.is_empty() && recursive);
    bind(&["rbind", "idmap"]).userns(Userns::Never).refused("need a user namespace");

    let line = json!([{"containerID": 0, "hostID": 7, "size": 3}]);
    let mapped = |options: &[&str]| {
        bind(options)
            .set("/mounts/7/uidMappings", line.clone())
            .set("/mounts/7/gidMappings", line.clone())
    };
    let IdmapChoice::Mappings { mappings, recursive } =
        idmap(mapped(&["bind"]).userns(Userns::Never))
    else {
        panic!("no mappings");
    };
    assert_eq!(mappings.uids, [IdMapping { inside: 0, outside: 7, size: 3 }]);
    assert!(!recursive);
    mapped(&["bind", "noidmap"]).refused("both ID mappings and the option noidmap");
    bind(&["bind"])
        .set("/mounts/7/uidMappings", line.clone())
        .refused("mounts[7].gidMappings: expected beside");
    with(json!({"destination": "/a", "type": "tmpfs", "options": ["idmap"]}))
        .refused("for bind mounts only");
}

#[test]
fn the_gofer_makes_other_file_systems() {
    let story = with(
        json!({"destination": "/disk", "type": "ext4", "source": "/dev/vdb", "options": ["ro", "sync", "data=journal"]}),
    );
    let options = [("sync", None), ("data", Some("journal")), ("ro", None)];
    let options = options.map(|(key, value)| (key.to_string(), value.map(str::to_string))).to_vec();
    let expected =
        DeliveredSource::FileSystem { fs_type: "ext4".into(), source: "/dev/vdb".into(), options };
    assert_eq!(delivered(&story), expected);
}

#[test]
fn tmpcopyup_is_for_tmpfs() {
    let plan =
        with(json!({"destination": "/var", "type": "tmpfs", "options": ["tmpcopyup", "size=1m"]}))
            .accepted();
    assert!(matches!(mount(&plan, "/var").source, MountSource::Tmpfs { copy_up: true, .. }));
    bind(&["bind", "tmpcopyup"]).refused("tmpcopyup is an option of tmpfs only");
}

#[test]
fn destinations_are_cleaned_and_stay_inside() {
    let table = [
        ("/b/./c//d/", "/b/c/d"),
        ("/./x", "/x"),
        ("mnt", "/mnt"),
        ("./mnt/../x", "/x"),
        ("/a/../../b", "/b"),
        ("/..", "/"),
        ("//.", "/"),
    ];
    for (written, cleaned) in table {
        let plan = with(json!({"destination": written, "type": "tmpfs"})).accepted();
        assert_eq!(plan.container.mounts[7].destination, PathBuf::from(cleaned));
    }
    with(json!({"destination": "", "type": "tmpfs"})).refused("mounts[7].destination: is empty");
    with(json!({"destination": "/a\0b", "type": "tmpfs"}))
        .refused("mounts[7].destination: holds a NUL byte");
}

#[test]
fn proc_is_covered_by_proc_or_by_single_files_only() {
    with(json!({"destination": "/proc/meminfo", "source": "hosts", "options": ["bind"]}))
        .accepted();
    with(json!({"destination": "/proc", "source": "shm", "options": ["rbind"]})).accepted();
    with(json!({"destination": "/proc", "type": "tmpfs"}))
        .refused("tmpfs cannot take the place of proc");
    for inside in ["/./proc//self/attr", "proc/self/attr", "/sys/../../proc/self/attr"] {
        with(json!({"destination": inside, "type": "tmpfs"})).refused("is inside of proc");
    }
}

#[test]
fn an_error_names_the_mount() {
    bind(&["bind", "remount"]).refused("mounts[7].options[1]: \"remount\"");
    bind(&["bind", "size=1"]).refused("mounts[7] (/mnt): \"size=1\" is no option of a bind mount");
    bind(&["bind", "sync", "defaults", "silent"]).accepted();
    with(json!({"destination": "/a"})).refused("mounts[7] (/a): has no type");
    with(json!({"destination": "/a", "type": "none", "source": "/"})).refused("has no type");
    with(json!({"destination": "/a", "type": "bind"}))
        .refused("mounts[7].source: expected the path");
    with(json!({"destination": "/a", "type": "bind", "source": "nowhere"}))
        .refused("nowhere: No such file");
    with(json!({"destination": "/a", "type": "proc", "options": ["hidepid=2"]}))
        .refused("option \"hidepid=2\" is not supported");
    let cgroup = json!({"destination": "/cg", "type": "cgroup2", "options": ["ro", "nsdelegate"]});
    with(cgroup).accepted();
}

#[test]
fn a_bind_of_the_hosts_cgroups_is_told_where_it_cannot_be_written() {
    let told = |options: Value, userns: Userns| {
        let bind = json!({
            "destination": "/sys/fs/cgroup", "type": "bind", "source": "/sys/fs/cgroup",
            "options": options,
        });
        let mut story = with(bind);
        story.userns = userns;
        let told = story.accepted().host.powerless;
        told.iter().find(|one| one.lost.contains("host's cgroups belong")).map(|one| one.by_default)
    };
    assert_eq!(told(json!(["rbind", "rw"]), Userns::Auto), Some(false));
    let v2 = crate::spec::resolve::facts::has_cgroup_v2_only();
    let below = (!v2).then_some(true);
    assert_eq!(told(json!(["rbind", "ro"]), Userns::Auto), below, "version 1's hierarchies");
    assert_eq!(told(json!(["bind", "ro"]), Userns::Auto), None);
    assert_eq!(told(json!(["rbind", "rro"]), Userns::Auto), None);
    assert_eq!(told(json!(["rbind", "rw"]), Userns::Never), None);
}
