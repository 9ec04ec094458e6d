"""What pages ask of other servers, one module a server. Where they run, and as whom to ask, stands in the environment."""
