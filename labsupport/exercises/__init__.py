"""Exercises of the labs, one module a lab: ``from labsupport.exercises import lab01``."""
