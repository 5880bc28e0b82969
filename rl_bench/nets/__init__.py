"""Networks in terms of torch, and the executors that evaluate them."""
