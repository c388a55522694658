"""The models that sld is compared with: SLD*, NBE and an ACE-like head."""
