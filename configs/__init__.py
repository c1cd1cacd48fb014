"""Hydra configuration groups; installed as geoseg_gan.configs."""
