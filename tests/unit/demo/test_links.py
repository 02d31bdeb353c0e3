import pytest
import requests

from worker.demo.links import image_host


def test_serves_its_images_and_nothing_else():
    with image_host() as host:
        host.images["one"] = b"picture"
        one = requests.get(f"{host.address}/one", timeout=10)
        assert (one.status_code, one.content) == (200, b"picture")
        assert requests.get(f"{host.address}/two", timeout=10).status_code == 404
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{host.address}/one", timeout=10)
