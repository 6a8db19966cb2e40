"""Redis or Valkey, by setting: what several gateways share beside their database."""
