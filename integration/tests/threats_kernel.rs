//! The parts of the kernel that a container reaches. The baseline shuts those through which
//! kernels were broken: docs/threat-model.md has the list. Each test has a control that reaches
//! them with `baseline = "off"`.

use integration::container::options;
use integration::containerd::Containerd;
use integration::stdio::Streams;
use integration::version::Version;
use integration::{image, on_each_containerd, spec};
use serde_json::{Value, json};

on_each_containerd!(
    no_container_reaches_the_parts_that_the_baseline_shuts,
    without_a_user_namespace_a_filter_holds_nested_ones_back,
    a_capability_or_the_option_grants_a_part,
    the_strict_baseline_shuts_more,
    privileged_containers_and_execs_have_their_container_s_baseline,
);

on_each_containerd!(starting an_annotation_allows_user_namespaces_where_the_node_permits_it);

/// Each surface with the answer to a container that may not reach it.
const SHUT: [(&str, &str); 27] = [
    ("user namespace by unshare", "ENOSPC"),
    ("user namespace by clone", "ENOSPC"),
    ("user namespace by clone3", "ENOSPC"),
    ("user namespace after writing the limit", "ENOSPC"),
    ("io_uring", "ENOSYS"),
    ("bpf", "EPERM"),
    ("perf", "EPERM"),
    ("userfaultfd", "EPERM"),
    ("add_key", "EPERM"),
    ("request_key", "EPERM"),
    ("keyctl", "EPERM"),
    ("AF_ALG", "EAFNOSUPPORT"),
    ("AF_VSOCK", "EAFNOSUPPORT"),
    ("AF_XDP", "EAFNOSUPPORT"),
    ("AF_ALG with high bits", "EAFNOSUPPORT"),
    ("socketpair of AF_TIPC", "EAFNOSUPPORT"),
    ("TCP_ULP", "ENOPROTOOPT"),
    ("MSG_OOB by sendto", "EOPNOTSUPP"),
    ("MSG_OOB by sendmsg", "EOPNOTSUPP"),
    ("MSG_OOB by sendmmsg", "EOPNOTSUPP"),
    ("TIOCSTI", "EPERM"),
    ("TIOCSTI with high bits", "EPERM"),
    ("personality", "EPERM"),
    ("obsolete calls", "ENOSYS"),
    ("socketcall of i386", "ENOSYS"),
    ("AF_ALG by i386", "EAFNOSUPPORT"),
    ("io_uring by i386", "ENOSYS"),
];

/// Those that the strict baseline shuts as well.
const STRICT: [(&str, &str); 6] = [
    ("multicast", "EPERM"),
    ("multicast of IPv6", "EPERM"),
    ("ptrace", "EPERM"),
    ("mount", "ENOSYS"),
    ("remap_file_pages", "EPERM"),
    ("i386", "ENOSYS"),
];

fn expected(shut: &[(&str, &str)]) -> String {
    shut.iter().map(|(name, answer)| format!("{name}: {answer}\n")).collect()
}

fn reached(shut: &[(&str, &str)]) -> String {
    shut.iter().map(|(name, _)| format!("{name}: reached\n")).collect()
}

fn add_program(spec: &mut Value) {
    let path = image::sibling("surfaces");
    spec::add_bind(spec, path.to_str().expect("an ASCII path"), "/surfaces", &["bind", "ro"]);
}

fn grant(spec: &mut Value, capability: &str) {
    for set in ["bounding", "effective", "permitted", "inheritable"] {
        let set = &mut spec["process"]["capabilities"][set];
        match set.as_array_mut() {
            Some(set) => set.push(capability.into()),
            None => *set = json!([capability]),
        }
    }
}

/// Runs the program in a container with these options.
fn surfaces(
    containerd: &Containerd,
    id: &str,
    option: &str,
    args: &[&str],
    change: impl Fn(&mut Value),
) -> String {
    let args: Vec<&str> = ["/surfaces"].iter().chain(args).copied().collect();
    let container = containerd.container(id, args).spec(add_program).spec(change);
    let container = container.options(options(option, "")).start();
    let (code, output) = container.finish();
    assert_eq!(code, 0, "{output}");
    output
}

fn no_container_reaches_the_parts_that_the_baseline_shuts(containerd: Containerd) {
    assert_eq!(surfaces(&containerd, "default", "", &[], |_| ()), expected(&SHUT));
    let control = surfaces(&containerd, "control", "baseline = 'off'", &[], |_| ());
    assert_eq!(control, reached(&SHUT));
}

/// C libraries take ENOSYS of clone3 as a reason to take clone.
fn without_a_user_namespace_a_filter_holds_nested_ones_back(containerd: Containerd) {
    let run = |id: &str, option: &str, change: fn(&mut Value)| {
        let output = surfaces(&containerd, id, &format!("userns = 'never'\n{option}"), &[], change);
        output.lines().take(4).map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect()
    };
    let answers: Vec<String> = run("default", "", |_| ());
    assert_eq!(answers, ["EPERM", "EPERM", "ENOSYS", "EPERM"]);
    let answers: Vec<String> = run("control", "baseline = 'off'", |_| ());
    assert_eq!(answers, ["reached"; 4]);
    let answers: Vec<String> = run("admin", "", |spec| {
        grant(spec, "CAP_SYS_ADMIN");
    });
    assert_eq!(answers, ["reached"; 4]);
}

/// One that could write the limit of its user namespace has a filter beside it.
fn a_capability_or_the_option_grants_a_part(containerd: Containerd) {
    let granted = |id: &str, option: &str, change: &dyn Fn(&mut Value)| {
        let output = surfaces(&containerd, id, option, &[], change);
        let lines = output.lines().filter_map(|line| line.strip_suffix(": reached"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    for (capability, part) in
        [("CAP_BPF", "bpf"), ("CAP_PERFMON", "perf"), ("CAP_SYS_PTRACE", "userfaultfd")]
    {
        let with = |spec: &mut Value| grant(spec, capability);
        assert_eq!(granted(&capability.replace('_', "-"), "", &with), [part]);
    }
    let writable = |spec: &mut Value| {
        grant(spec, "CAP_SYS_RESOURCE");
        spec["linux"]["readonlyPaths"] = json!([]);
    };
    assert_eq!(granted("writes", "", &writable), [""; 0]);
    for (part, reached) in [
        ("user_namespaces", &SHUT[..4]),
        ("io_uring", &[SHUT[4], SHUT[26]]),
        ("keys", &SHUT[8..11]),
        ("tcp_ulp", &SHUT[16..17]),
        ("msg_oob", &SHUT[17..20]),
        ("tiocsti", &SHUT[20..22]),
        ("personality", &SHUT[22..23]),
        ("obsolete", &SHUT[23..24]),
        ("socketcall", &SHUT[24..25]),
        ("vsock", &SHUT[12..13]),
    ] {
        let reached: Vec<_> = reached.iter().map(|(name, _)| *name).collect();
        let id = part.replace('_', "-");
        let option = format!("baseline_allow = ['{part}']");
        assert_eq!(granted(&id, &option, &|_| ()), reached, "{part}");
    }
}

fn the_strict_baseline_shuts_more(containerd: Containerd) {
    let strict = "baseline = 'strict'";
    let seen = surfaces(&containerd, "strict", strict, &["strict"], |_| ());
    assert_eq!(seen, expected(&STRICT));
    let control = surfaces(&containerd, "control", "", &["strict"], |_| ());
    assert_eq!(control, reached(&STRICT));
    let seen = surfaces(&containerd, "others", strict, &[], |_| ());
    assert!(!seen.contains("reached"), "{seen}");
}

fn privileged_containers_and_execs_have_their_container_s_baseline(containerd: Containerd) {
    let ordinary = containerd.container("ordinary", ["sleep", "1000"]).spec(add_program).start();
    assert_eq!(ordinary.exec_shell("look", "/surfaces").1, expected(&SHUT));
    // One with all capabilities, as of `docker exec --privileged`.
    let mut mighty = spec::process(&["/surfaces"]);
    spec::add_capabilities_of_host(&mut mighty);
    let exec = ordinary.exec("mighty", mighty, Streams::Captured).expect("add an exec");
    exec.start().expect("start it");
    exec.wait();
    let seen = exec.stdio().output();
    assert_eq!(seen, expected(&SHUT));

    let privileged = containerd.container("privileged", ["/surfaces"]).spec(add_program);
    let privileged = privileged.spec(|spec| {
        spec::add_capabilities_of_host(&mut spec["process"]);
        spec["linux"]["maskedPaths"] = json!([]);
        spec["linux"]["readonlyPaths"] = json!([]);
    });
    assert_eq!(privileged.start().finish(), (0, reached(&SHUT)));
}

fn an_annotation_allows_user_namespaces_where_the_node_permits_it(version: Version) {
    let permits = "allow_annotations = ['baseline_allow.user_namespaces']";
    let containerd = Containerd::start_with_option_file(version, permits);
    let makes = |id: &str, annotation: Option<&str>| {
        let pod = containerd.pod_with(id, |config| {
            let value =
                annotation.map(|value| ("dev.palisade.baseline_allow".into(), value.into()));
            config.annotations.extend(value);
        });
        let container = pod.container("main", "sleep 1000", |_| ());
        container.exec("unshare -U true").code == 0
    };
    assert!(!makes("default", None));
    assert!(makes("allowed", Some("user_namespaces")));
}
