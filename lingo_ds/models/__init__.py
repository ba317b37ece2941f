"""The network: a frozen backbone, whole or sharded; adapters on its linear maps; a head."""
