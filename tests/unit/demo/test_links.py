import urllib.error
import urllib.request

import pytest

from worker.demo.links import image_host


def test_serves_its_images_and_nothing_else():
    with image_host() as host:
        host.images["one"] = b"picture"
        with urllib.request.urlopen(f"{host.address}/one") as answer:
            assert answer.read() == b"picture"
        with pytest.raises(urllib.error.HTTPError) as missing:
            urllib.request.urlopen(f"{host.address}/two")
        missing.value.close()
        assert missing.value.code == 404
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{host.address}/one")
