"""Which IP addresses an image may be fetched from.

A name in an upload event can resolve to anything, so it is the address that is judged. No setting
opens link-local, metadata, multicast, unspecified and reserved addresses. Loopback, where the
worker's own sidecars listen, needs `fetch.allow_loopback_addresses`; what else the internet cannot
reach (private, shared, unique-local) needs `fetch.allow_private_addresses`.
"""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from worker.errors import FetchError, UnscreenedReason

type Address = IPv4Address | IPv6Address

# Cloud metadata services outside link-local: they look private, shared or even public.
_METADATA = {
    ip_address(text)
    for text in (
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure
        "192.0.0.192",  # Oracle
        "fd00:42::42",  # Scaleway
        "fd00:c1::a9fe:a9fe",  # Oracle
        "fd20:ce::254",  # Google
    )
}
_METADATA_OF_AWS = IPv6Network("fd00:ec2::/32")
"""Of machines, and of pods: one more address for each service."""
_THIS_NETWORK = ip_network("0.0.0.0/8")

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_UNSPECIFIED, _LOOPBACK = IPv6Address("::"), IPv6Address("::1")
# Prefixes whose last four bytes are an IPv4 address: IPv4-compatible, and NAT64.
_ENDS_IN_IPV4 = (IPv6Network("::/96"), IPv6Network("64:ff9b::/96"))
_ISATAP = (0x00005EFE, 0x02005EFE)
_32_BITS = 0xFFFFFFFF


def check(address: str, *, allow_private: bool, allow_loopback: bool) -> None:
    """Judge an address in numbers. Raises FetchError (`fetch_denied`) if it is not to be opened."""
    try:
        outer = ip_address(address.partition("%")[0])  # a scope changes nothing
    except ValueError:
        raise FetchError(UnscreenedReason.FETCH_DENIED, "not an IP address") from None
    for judged in _ends(outer):
        if kind := _never(judged):
            raise FetchError(UnscreenedReason.FETCH_DENIED, f"{kind} address")
        if judged.is_loopback:
            if not allow_loopback:
                raise FetchError(UnscreenedReason.FETCH_DENIED, "loopback address")
        elif not (_is_public(judged) or allow_private):
            raise FetchError(UnscreenedReason.FETCH_DENIED, "private address")


def _ends(address: Address) -> tuple[Address, ...]:
    """Where a packet to this address may end: itself, or the IPv4 addresses inside it."""
    if isinstance(address, IPv4Address) or address in (_UNSPECIFIED, _LOOPBACK):
        return (address,)
    if address.teredo:
        return address.teredo
    if inner := address.ipv4_mapped or address.sixtofour:
        return (inner,)
    last = IPv4Address(int(address) & _32_BITS)
    if any(address in prefix for prefix in _ENDS_IN_IPV4):
        return (last,)
    if int(address) >> 32 & _32_BITS in _ISATAP:
        return (address, last)
    return (address,)


def _never(address: Address) -> str | None:
    """Names what makes an address one that no setting opens."""
    if address.is_loopback:  # Python calls ::1 reserved as well
        return None
    kinds = {
        "metadata": address in _METADATA or address in _METADATA_OF_AWS,
        "link-local": address.is_link_local,
        "multicast": address.is_multicast,
        "unspecified": address.is_unspecified or address in _THIS_NETWORK,
        "reserved": address.is_reserved,
    }
    return next((kind for kind, applies in kinds.items() if applies), None)


def _is_public(address: Address) -> bool:
    """Reachable for the whole internet; of IPv6, only what was ever given out for that."""
    return address.is_global and (isinstance(address, IPv4Address) or address in _GLOBAL_UNICAST)
