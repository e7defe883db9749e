"""vfio-user: an NVMe drive as a PCI function of a virtual machine, at a socket.

    vfio_messages      messages as bytes and values
    client_connection  a socket: whole messages, and the descriptors beside them
    pci_config         configuration space
    drive_memory       registers and doorbells
    pci_function       what messages do: regions, interrupts, memory, reset
    guest_memory_map   the memory that the guest has mapped
    page_list          where the data of a command is
    drive_queues       submission and completion queues in guest memory
    pci_drive          the controller behind the registers: admin commands, serving queues, interrupts
    io_commands        I/O commands: at once, by the compiled walker (queue_walker.pyx), or by a worker
    queue_set          all queues of a controller
    drive_record       the state for a drive that takes over, in memory that outlives the process
    held_answers       answers that are held for as long as a real drive takes
    begun_commands     commands that an earlier process had begun
    interrupts         eventfds of the client
    vfio_server        the thread that serves a socket
    keeper             the process that keeps the client while the daemon is killed and started again
    keeper_link        the messages between keeper and daemon
    kept_client        the daemon's side of the link
    doorbell_reader    doorbells that the daemon takes from the client's socket by itself

Sources: QEMU, docs/interop/vfio-user.rst; NVM Express over PCIe Transport Specification 1.0.
"""
