"""Sources, pools, the Digits benchmark, proxies and input."""
