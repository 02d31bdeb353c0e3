"""Every family of addresses, plain and wrapped."""

import pytest

from worker.errors import FetchError, UnscreenedReason
from worker.image import addresses

PUBLIC = [
    "8.8.8.8",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
]
PRIVATE = [
    "10.1.2.3",
    "172.16.0.1",
    "192.168.0.1",
    "100.64.0.1",
    "198.18.0.1",
    "fc00::1",
    "fd00:ec3::254",
    "fec0::1",
    "64:ff9b::10.0.0.1",
    "2002:a00:1::",
    "2001:db8::1",
]
LOOPBACK = [
    "127.0.0.1",
    "127.9.9.9",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "::127.0.0.1",
    "64:ff9b::127.0.0.1",
    "2002:7f00:1::",
]
NEVER = [
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd00:ec2::254%3",
    "fd00:ec2::23",  # EKS pod identity
    "fd00:ec2:ffff::1",
    "fd00:c1::a9fe:a9fe",
    "fd20:ce::254",
    "fe80::1",
    "fe80::1%eth0",
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "224.0.0.1",
    "ff02::1",
    "240.0.0.1",
    "255.255.255.255",
    "4000::1",
    "::ffff:169.254.169.254",
    "::ffff:0.0.0.0",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::169.254.169.254",
    "2002:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:5601:5601",  # Teredo, whose client is 169.254.169.254
    "2001:0:a9fe:a9fe:8000:63bf:3fff:fdd2",  # Teredo, whose server is
    "2606:4700::5efe:169.254.169.254",
    "::169.254.169.254",
    "localhost",
    "2130706433",
    "",
]


def allows(address: str, *, allow_private: bool, allow_loopback: bool = False) -> bool:
    try:
        addresses.check(address, allow_private=allow_private, allow_loopback=allow_loopback)
    except FetchError as error:
        return error.reason is not UnscreenedReason.FETCH_DENIED
    return True


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_open(address: str) -> None:
    assert allows(address, allow_private=False)
    assert allows(address, allow_private=True)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_need_the_setting(address: str) -> None:
    assert not allows(address, allow_private=False)
    assert allows(address, allow_private=True)


@pytest.mark.parametrize("address", PRIVATE)
def test_the_setting_for_loopback_opens_no_private_address(address: str) -> None:
    assert not allows(address, allow_private=False, allow_loopback=True)


@pytest.mark.parametrize("address", LOOPBACK)
def test_loopback_needs_a_setting_of_its_own(address: str) -> None:
    assert not allows(address, allow_private=True)
    assert allows(address, allow_private=False, allow_loopback=True)


@pytest.mark.parametrize("address", NEVER)
def test_some_are_never_open(address: str) -> None:
    assert not allows(address, allow_private=False)
    assert not allows(address, allow_private=True, allow_loopback=True)
