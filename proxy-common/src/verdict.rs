//! What became of a packet: one enum, used by the programs, the metrics, the command line and the tests.

/// Declares an enum and a struct with one counter for each of its variants, so that a map dump names them.
macro_rules! counted {
    (
        $(#[$table_doc:meta])* table $table:ident;
        $( $(#[$enum_doc:meta])* enum $name:ident {
            $( $(#[$doc:meta])* $variant:ident = $field:ident ),+ $(,)?
        } )+
    ) => {
        $(
            $(#[$enum_doc])*
            #[repr(u32)]
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
            pub enum $name { $( $(#[$doc])* $variant ),+ }

            impl $name {
                /// Every variant, in the order of the counters.
                pub const ALL: &'static [Self] = &[$(Self::$variant),+];

                /// The name used for the counter, in metrics and on the command line.
                #[must_use]
                pub const fn name(self) -> &'static str {
                    match self { $(Self::$variant => stringify!($field)),+ }
                }

                /// The counter of this outcome.
                #[inline(always)]
                #[must_use]
                pub const fn of(self, table: &$table) -> u64 {
                    match self { $(Self::$variant => table.$field),+ }
                }

                /// The counter of this outcome, to be raised.
                #[inline(always)]
                pub const fn of_mut(self, table: &mut $table) -> &mut u64 {
                    match self { $(Self::$variant => &mut table.$field),+ }
                }
            }
        )+

        $(#[$table_doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $table { $($( $(#[$doc])* pub $field: u64, )+)+ }

        impl core::ops::AddAssign for $table {
            fn add_assign(&mut self, other: Self) {
                $($( self.$field += other.$field; )+)+
            }
        }
    };
}

counted! {
    /// The one entry of the per-CPU `counters` map.
    table Counters;

    /// What a program decided about a packet.
    enum Verdict {
        /// Steered: its tuple is in `flows`; marked, and counted there.
        SteerFlow = steer_flow,
        /// Steered: a new connection, given to a worker's listener.
        SteerNew = steer_new,
        /// Steered: a SYN on a connection in TIME_WAIT; marked, and the socket lookup finds the listener.
        SteerTimeWait = steer_time_wait,
        /// Steered: one of the proxy's sockets has this tuple, though `flows` has not (a handshake, the last
        /// packets of a closed connection, or a full map).
        SteerSocket = steer_socket,
        /// Steered: the ACK that answers a SYN cookie of ours; marked, and the socket lookup finds the listener.
        SteerCookie = steer_cookie,
        /// Steered: an ICMP error about a packet that the proxy sent.
        SteerIcmp = steer_icmp,
        /// Steered: a fragment behind the first, which is steered too.
        SteerFragment = steer_fragment,
        /// The socket lookup named a listener to the stack, for a packet that was only marked.
        LookupListener = lookup_listener,
        /// Answered: a ping to an address of a service whose server can be reached.
        AnswerPing = answer_ping,
        /// Let pass: neither IPv4 nor IPv6.
        PassNotIp = pass_not_ip,
        /// Let pass: neither TCP nor UDP, nor an ICMP error about one of the proxy's connections, nor a ping to be answered.
        PassOtherProtocol = pass_other_protocol,
        /// Let pass: a fragment behind the first, which passed too; or one that Sheer could not follow, and `when_down` is
        /// open.
        PassFragment = pass_fragment,
        /// Let pass: cut short or contradictory headers; the stack drops it if it is ours to drop.
        PassMalformed = pass_malformed,
        /// Let pass: to one of this host's own addresses, or to one that is never intercepted.
        PassLocal = pass_local,
        /// Let pass: a new connection, or a datagram, that no service matches.
        PassNoService = pass_no_service,
        /// Let pass: a service says so.
        PassService = pass_service,
        /// Let pass: part of a connection that is not the proxy's.
        PassNoSocket = pass_no_socket,
        /// Let pass: the tuple belongs to somebody else's socket on this host.
        PassForeignSocket = pass_foreign_socket,
        /// Let pass: the proxy is down and the service's `when_down` is open.
        PassDown = pass_down,
        /// Dropped: a service says so.
        DropService = drop_service,
        /// Dropped: the client opens connections faster than the service's limit allows.
        DropRate = drop_rate,
        /// Dropped: the client has as many connections as the service's limit allows.
        DropConcurrent = drop_concurrent,
        /// Dropped: the client is blocked, by a limit or by hand.
        DropBlocked = drop_blocked,
        /// Dropped: the proxy is down and the service's `when_down` is closed.
        DropDown = drop_down,
        /// Dropped: a fragment behind the first, which was dropped too; or one that Sheer could not follow, and `when_down`
        /// is closed or its connection is the proxy's; or one that would write over the flags of a TCP header (RFC 3128).
        DropFragment = drop_fragment,
        /// Taken out of the way: a fragment that came before the first waits for it, and then comes in anew.
        HoldFragment = hold_fragment,
    }

    /// A helper of the kernel that refused its work.
    enum HelperFailure {
        /// `bpf_sk_assign` at tc; the connection is treated as if the proxy were down.
        SkAssign = failed_sk_assign,
        /// `bpf_sk_assign` in the socket lookup; the kernel goes on without the listener.
        LookupAssign = failed_lookup_assign,
        /// A client under a limit could not be remembered; its connection is let in.
        LimitInsert = failed_limit_insert,
        /// The way by which a client came could not be remembered; it is answered by the routes.
        WayInsert = failed_way_insert,
        /// It could not be noted that a service is pinged; the ping passes.
        PingInsert = failed_ping_insert,
        /// A packet could not be sent by another way than it was on.
        Redirect = failed_redirect,
        /// What the proxy must know of a new connection could not be written down for it.
        OpeningInsert = failed_opening_insert,
        /// What becomes of a datagram's fragments could not be remembered: the map is full. Where that changes what becomes of
        /// the first one too, it counts as passed or dropped besides.
        FragmentInsert = failed_fragment_insert,
        /// A fragment that came before the first could not wait for it: no room, or too long.
        FragmentHold = failed_fragment_hold,
        /// A fragment that had waited could not be sent on.
        FragmentRelease = failed_fragment_release,
        /// A map that always has its entry had none; the packet was let pass.
        MapLookup = failed_map_lookup,
    }
}

impl Verdict {
    /// Whether the packet goes to the proxy.
    #[inline(always)]
    #[must_use]
    pub const fn steers(self) -> bool {
        matches!(
            self,
            Self::SteerFlow
                | Self::SteerNew
                | Self::SteerTimeWait
                | Self::SteerSocket
                | Self::SteerCookie
                | Self::SteerIcmp
                | Self::SteerFragment
                | Self::LookupListener
        )
    }

    /// Whether the packet is dropped.
    #[inline(always)]
    #[must_use]
    pub const fn drops(self) -> bool {
        matches!(
            self,
            Self::DropService
                | Self::DropRate
                | Self::DropConcurrent
                | Self::DropBlocked
                | Self::DropDown
                | Self::DropFragment
                | Self::HoldFragment
        )
    }
}
