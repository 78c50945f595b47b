//! Token buckets for ICMP errors (RFC 1812 4.3.2.8, RFC 4443 2.4f).
