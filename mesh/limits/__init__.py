"""How many at once, who is next, and when: pools of permits, queues, timers."""
