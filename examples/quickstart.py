"""The first minute with zkv: put, get, conflicts, batches, receipts.

zkv serve &                          # one node on 127.0.0.1:7400
python examples/quickstart.py        # or with another URL: python examples/quickstart.py zkv://127.0.0.1:7410
"""

from __future__ import annotations

import sys

import zkv


def main(url: str) -> None:
    with zkv.connect(url) as kv:
        receipt = kv.put("user:1", b"Ada")
        print("put user:1; held by", ", ".join(receipt.acked))
        print("get user:1:", kv.get("user:1"))
        print("get user:none:", kv.get("user:none", default=b"(nothing)"))

        # Two writers who saw the same: neither is dropped, and whoever reads next joins them.
        kv.put("cart:7", b"apples")
        seen = kv.get_item("cart:7").context
        kv.put("cart:7", b"apples,bread", context=seen)
        kv.put("cart:7", b"apples,cheese", context=seen)
        both = kv.get_item("cart:7")
        print("siblings of cart:7:", sorted(both.values))
        joined = b",".join(sorted({item for cart in both.values for item in cart.split(b",")}))
        kv.put("cart:7", joined, context=both.context)
        print("cart:7 joined:", kv.get("cart:7"))

        kv.put_many({f"reading:{n}": b"%d" % n for n in range(1_000)})
        found = kv.get_many([f"reading:{n}" for n in range(1_000)])
        print("1,000 readings written and read back, their sum:", sum(int(value) for value in found.values()))

        kv.delete("user:1")
        print("user:1 exists after the delete:", kv.exists("user:1"))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "zkv://127.0.0.1:7400")
