//! `resolv.conf` of a pod.

use super::cri::cri::DNSConfig;

/// Formats the resolv.conf(5) that a pod's configuration asks for.
pub(super) fn resolv_conf(dns: &DNSConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_the_pods() {
        let mut dns = DNSConfig::new();
        dns.servers = vec!["192.0.2.1".into(), "192.0.2.2".into()];
        dns.options = vec!["ndots:5".into(), "rotate".into()];
        let text = "nameserver 192.0.2.1\nnameserver 192.0.2.2\noptions ndots:5 rotate\n";
        assert_eq!(resolv_conf(&dns), text);
        assert_eq!(resolv_conf(&DNSConfig::new()), "");
    }
}
