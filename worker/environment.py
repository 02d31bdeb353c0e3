"""Environment variables that other programs share: proxies, and logins of object stores.

Copysieve's own variables are settings (`settings.py`).
"""

import os
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

_STORE_LOGINS = {
    "s3": {"AWS_SKIP_SIGNATURE": "skip_signature"},
    "az": {
        "AZURE_SKIP_SIGNATURE": "skip_signature",
        "AZURE_STORAGE_ACCOUNT_KEY": "account_key",
        "AZURE_STORAGE_ACCESS_KEY": "account_key",
        "AZURE_STORAGE_MASTER_KEY": "account_key",
        "AZURE_STORAGE_SAS_KEY": "sas_key",
        "AZURE_STORAGE_SAS_TOKEN": "sas_key",
    },
}


def store_login(scheme: str) -> dict[str, str]:
    """How object stores are logged in to, by their client's own names, for it does not tell.

    Only what decides who makes the URL: `skip_signature`, `account_key`, `sas_key`.
    """
    known = _STORE_LOGINS.get(scheme, {})
    return {name: value for one, name in known.items() if (value := os.environ.get(one))}


def proxy_for(url: str) -> str | None:
    """The proxy for a URL by HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, in either case."""
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
