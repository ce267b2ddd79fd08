%% SPDX-License-Identifier: Apache-2.0
%% An application that reports to telemetry what it does, as Phoenix, LiveView, Ecto and Oban would, and a
%% handler that counts the same inside. The module telemetry is one of the folders telemetry-*.
%%
%%   emit N     N rounds of every event, from five processes
%%   lookup N   N lookups in a table of its own
%%   routes N   an event of each of N routes
%%   loop W N   N times: an event with three labels, one of a large struct, an unknown one, a lookup
%%   requests N requests, from five processes that serve one after the other: request K is of the route
%%              /r/K, has K rem 4 queries and fails if K rem 10 is 0; one query more is of no request
%%   steady E L E events and L lookups a second from now on, all of one route and 200 us long; "still"
%%              ends that, and answers with the number of events since
%%   split N    N rounds of requests that burn CPU: 60 parts in the route /cpu/60, which has 10 parts
%%              in mounts of a LiveView in its middle, and 30 in /cpu/30, which raises
%%   burn N     CPU is burnt within no request
%%   killed     a process is killed within a request
%%   persist    telemetry:persist/0
%%   reload     the module telemetry is loaded again
%%   hostile    events that nobody should emit
%%   truth      rows of (event, count, sum of the duration, labels), between them \x1e, \x1f
-module(telling).
-export([start/0, main/0, handle/4, nested/4]).

-define(KNOWN, [
    [phoenix, endpoint, stop], [phoenix, router_dispatch, stop],
    [phoenix, router_dispatch, exception], [phoenix, live_view, handle_event, stop],
    [shop, repo, query], [shop, other, query], [oban, job, stop], [shop, cart, add],
    [shop, cart, empty], [shop, nested, stop], [shop, value]
]).

%% For erl -s telling.
start() -> spawn(?MODULE, main, []).

main() ->
    telemetry:start(),
    ets:new(truth, [named_table, public]),
    ets:new(foreign, [named_table, public]),
    %% "-bare" is for measuring what an event costs without a handler.
    [attach() || init:get_argument(bare) =:= error],
    control:serve(fun(_) -> ok end, fun command/2).

attach() ->
    telemetry:attach_many(truth, ?KNOWN, fun ?MODULE:handle/4, none),
    telemetry:attach_many(nested, [[shop, cart, add]], fun ?MODULE:nested/4, none).

command(_, ["emit", N]) ->
    Rounds = list_to_integer(N),
    Workers = [spawn_monitor(fun() -> rounds(Rounds, W) end) || W <- lists:seq(1, 5)],
    [receive {'DOWN', Reference, _, _, normal} -> ok end || {_, Reference} <- Workers],
    "done emit " ++ N;
command(_, ["lookup", N]) ->
    [ets:lookup(foreign, K) || K <- lists:seq(1, list_to_integer(N))],
    [persistent_term:get({foreign, K}, none) || K <- lists:seq(1, list_to_integer(N))],
    "done lookup " ++ N;
command(_, ["routes", N]) ->
    [dispatch(integer_to_binary(K), #{}, 1000) || K <- lists:seq(1, list_to_integer(N))],
    "done routes " ++ N;
command(_, ["loop", What, N]) ->
    Loop = fun() -> loop(once(list_to_atom(What)), list_to_integer(N)) end,
    {_, Reference} = spawn_monitor(Loop),
    receive {'DOWN', Reference, _, _, normal} -> "done loop " ++ N end;
command(_, ["requests", N]) ->
    Numbers = lists:seq(1, list_to_integer(N)),
    Serve = fun(W) -> [request(K) || K <- Numbers, K rem 5 =:= W] end,
    Workers = [spawn_monitor(fun() -> Serve(W) end) || W <- lists:seq(0, 4)],
    [receive {'DOWN', Reference, _, _, normal} -> ok end || {_, Reference} <- Workers],
    timed([shop, repo, query], total_time, fun() ->
        #{type => ecto_sql_query, repo => 'Elixir.Shop.Repo', source => <<"none">>, result => {ok, 1}}
    end),
    "done requests " ++ N;
command(_, ["steady", Events, Lookups]) ->
    Rates = {list_to_integer(Events), list_to_integer(Lookups)},
    register(steady, spawn(fun() -> steady(Rates, erlang:monotonic_time(), {0, 0}) end)),
    "done steady";
command(_, ["still"]) ->
    steady ! {stop, self()},
    receive {stopped, Events} -> integer_to_list(Events) end;
command(_, ["split", N]) ->
    {_, Reference} = spawn_monitor(fun() -> split(list_to_integer(N)) end),
    receive {'DOWN', Reference, _, _, normal} -> "done split" end;
command(_, ["burn", Parts]) ->
    burn(list_to_integer(Parts)),
    "done burn";
command(_, ["killed"]) ->
    Self = self(),
    {Pid, Reference} = spawn_monitor(fun() ->
        begun([bandit, request, start]),
        begun([phoenix, router_dispatch, start]),
        timed([shop, repo, query], total_time, fun() -> query_of(1) end),
        Self ! within,
        receive never -> ok end
    end),
    receive within -> exit(Pid, kill) end,
    receive {'DOWN', Reference, _, _, killed} -> "done killed" end;
command(_, ["persist"]) -> telemetry:persist(), "done persist";
command(_, ["reload"]) ->
    code:purge(telemetry),
    {module, telemetry} = code:load_file(telemetry),
    "done reload";
command(_, ["hostile"]) -> hostile(1), "done hostile";
command(_, ["truth"]) ->
    Rows = [[lists:join(".", [atom_to_list(A) || A <- Name]), $\x1f, integer_to_list(Count), $\x1f,
        integer_to_list(Sum), [[$\x1f, L] || L <- Labels]]
        || {{Name, Labels}, Count, Sum} <- ets:tab2list(truth)],
    lists:join($\x1e, Rows).

rounds(Rounds, Worker) ->
    [one_round(Round, Worker) || Round <- lists:seq(1, Rounds)].

one_round(Round, Worker) ->
    Duration = 1000 * Round + 17 * Worker,
    Status = lists:nth(Round rem 3 + 1, [200, 404, 503]),
    run([phoenix, endpoint, stop], Duration, #{conn => conn(Status, <<"GET">>), options => []}),
    Long = binary:copy(<<"/products/:id">>, 9),
    Text = <<"xx/api/carts/:id/items-", Long/binary>>,
    Routes = [<<"/api/fast/:id">>, <<>>, Long, binary:part(Text, 2, 13), binary:part(<<"a/b/c">>, 1, 2),
        binary:copy(<<"/64">>, 21), <<"/é/", 7, "\"\\/"/utf8>>, nil, 'Elixir.Shop.Router', 42,
        list_to_atom("route " ++ integer_to_list(Worker))],
    [dispatch(Route, #{}, Duration) || Route <- Routes],
    %% 29 keys beside route, plug and plug_opts are 32 in all; one more, and the map is of another kind.
    dispatch(<<"/32">>, maps:from_list([{{k, N}, N} || N <- lists:seq(1, 29)]), Duration),
    dispatch(<<"/33">>, maps:from_list([{{k, N}, N} || N <- lists:seq(1, 30)]), Duration),
    [run([phoenix, router_dispatch, exception], Duration, #{route => <<"/boom">>,
        plug => 'Elixir.ShopWeb.PageController', kind => error, reason => Reason})
        || Reason <- [badarith, {badmatch, <<"no">>}, exception('Elixir.ArgumentError'),
            #{'__struct__' => 'Elixir.Plug.Conn.WrapperError', conn => none, kind => error,
                reason => exception('Elixir.RuntimeError')}]],
    Frame = <<"[\"4\",\"5\",\"lv:1\",\"event\",{\"event\":\"inc\"}]", Long/binary>>,
    run([phoenix, live_view, handle_event, stop], Duration,
        #{socket => socket(), event => binary:part(Frame, element(1, binary:match(Frame, <<"inc">>)), 3),
            params => #{}}),
    query([shop, repo, query], Duration, <<"products">>, {ok, #{num_rows => 3, command => select}}),
    query([shop, other, query], Duration, nil, {error, closed}),
    run([oban, job, stop], Duration, #{state => success,
        job => #{worker => <<"Shop.Mailer">>, queue => <<"default">>, id => Round}}),
    run([shop, cart, add], Duration, #{}),
    telemetry:execute([shop, cart, empty], #{items => 3}),
    telemetry:execute([shop, value], 5, #{}).

%% The endpoint has sent its answer before the router has returned, as in Phoenix.
request(K) ->
    Route = <<"/r/", (integer_to_binary(K))/binary>>,
    Fails = K rem 10 =:= 0,
    Status = case Fails of true -> 500; false -> 200 end,
    Conn = conn(Status, <<"GET">>),
    begun([bandit, request, start]),
    %% The end of a request that raised is an event without a duration, as in Bandit.
    Server = case K rem 20 of 0 -> exception; _ -> stop end,
    Measurement = case K rem 20 of 0 -> monotonic_time; _ -> duration end,
    timed([bandit, request, Server], Measurement, fun() ->
        begun([phoenix, endpoint, start]),
        Began = erlang:monotonic_time(),
        begun([phoenix, router_dispatch, start]),
        Router = case Fails of true -> exception; false -> stop end,
        timed([phoenix, router_dispatch, Router], duration, fun() ->
            [timed([shop, repo, query], total_time, fun() -> query_of(N) end)
                || N <- lists:seq(1, K rem 4)],
            not Fails andalso answered(Began, Conn),
            #{route => Route, plug => 'Elixir.ShopWeb.PageController', plug_opts => show,
                reason => exception('Elixir.ArgumentError'), kind => error}
        end),
        Fails andalso answered(Began, Conn),
        #{conn => Conn, kind => exit, exception => exception('Elixir.ArgumentError')}
    end).

split(0) -> ok;
split(Rounds) ->
    Plug = #{plug => 'Elixir.ShopWeb.PageController', plug_opts => show},
    Socket = #{socket => socket()},
    working([phoenix, router_dispatch], stop, Plug#{route => <<"/cpu/60">>}, fun() ->
        burn(30),
        working([phoenix, live_view, mount], stop, Socket, fun() -> burn(10) end),
        burn(30)
    end),
    working([phoenix, router_dispatch], exception, Plug#{route => <<"/cpu/30">>, reason => no,
        kind => error}, fun() -> burn(30) end),
    split(Rounds - 1).

working(Family, End, Metadata, Work) ->
    telemetry:execute(Family ++ [start], #{system_time => 1}, Metadata),
    Work(),
    telemetry:execute(Family ++ [End], #{duration => 1}, Metadata).

burn(Parts) -> burn(2000 * Parts, 0).

burn(0, Sum) -> Sum;
burn(N, Sum) -> burn(N - 1, Sum bxor N).

begun(Name) -> telemetry:execute(Name, #{system_time => 1}, #{}).

answered(Began, Conn) ->
    run([phoenix, endpoint, stop], erlang:monotonic_time() - Began, #{conn => Conn}).

query_of(N) ->
    #{type => ecto_sql_query, repo => 'Elixir.Shop.Repo',
        source => <<"q", (integer_to_binary(N))/binary>>, result => {ok, N}}.

timed(Name, Measurement, Function) ->
    Began = erlang:monotonic_time(),
    Metadata = Function(),
    telemetry:execute(Name, #{Measurement => erlang:monotonic_time() - Began}, Metadata).

steady({Events, Lookups} = Rates, Since, {E, L} = Done) ->
    Passed = erlang:monotonic_time() - Since,
    Second = erlang:convert_time_unit(1, second, native),
    Due = {Events * Passed div Second, Lookups * Passed div Second},
    [dispatch(<<"/steady">>, #{}, 200000) || _ <- lists:seq(E + 1, element(1, Due))],
    loop(fun() -> ets:lookup(foreign, 1) end, max(0, element(2, Due) - L)),
    receive {stop, From} -> From ! {stopped, element(1, Due)}
    after 1 -> steady(Rates, Since, {max(E, element(1, Due)), max(L, element(2, Due))})
    end,
    Done.

loop(_, 0) -> ok;
loop(Once, N) -> Once(), loop(Once, N - 1).

%% What is emitted is made before, so that a loop does nothing else.
once(three) ->
    Metadata = #{route => <<"/api/fast/:id">>, plug => 'Elixir.ShopWeb.PageController',
        plug_opts => show},
    fun() -> run([phoenix, router_dispatch, stop], 1000, Metadata) end;
once(struct) ->
    Metadata = #{conn => conn(200, <<"GET">>), options => []},
    fun() -> run([phoenix, endpoint, stop], 1000, Metadata) end;
once(unknown) -> fun() -> run([shop, unknown], 1000, #{}) end;
once(lookup) -> fun() -> ets:lookup(foreign, 1) end;
once(term) -> fun() -> persistent_term:get(foreign, 1) end.

run(Name, Duration, Metadata) ->
    telemetry:execute(Name, #{duration => Duration, monotonic_time => 1}, Metadata).

dispatch(Route, More, Duration) ->
    run([phoenix, router_dispatch, stop], Duration, More#{route => Route,
        plug => 'Elixir.ShopWeb.PageController', plug_opts => show}).

query(Name, Duration, Source, Result) ->
    telemetry:execute(Name,
        #{total_time => Duration, queue_time => 100, query_time => Duration - 100},
        #{type => ecto_sql_query, repo => 'Elixir.Shop.Repo', source => Source, result => Result}).

%% 28 keys, as a Plug.Conn has.
conn(Status, Method) ->
    Filler = maps:from_list([{list_to_atom("field" ++ integer_to_list(N)), N}
        || N <- lists:seq(1, 24)]),
    Filler#{'__struct__' => 'Elixir.Plug.Conn', status => Status, method => Method,
        private => #{phoenix_controller => 'Elixir.ShopWeb.PageController'}}.

socket() ->
    Filler = maps:from_list([{list_to_atom("assign" ++ integer_to_list(N)), N}
        || N <- lists:seq(1, 12)]),
    Filler#{'__struct__' => 'Elixir.Phoenix.LiveView.Socket', view => 'Elixir.ShopWeb.CounterLive'}.

exception(Name) -> #{'__struct__' => Name, '__exception__' => true, message => <<"no">>}.

%% A handler that emits an event itself.
nested(_, #{duration := Duration}, _, _) -> run([shop, nested, stop], Duration, #{}).

%% What the rows must be: the same events, counted by the handler.
handle(Name, Measurements, Metadata, _) ->
    Duration = maps:get(duration, Measurements, maps:get(total_time, Measurements, 0)),
    Key = {shown(Name), labels(Name, Metadata)},
    ets:update_counter(truth, Key, [{2, 1}, {3, Duration}], {Key, 0, 0}).

shown([_, _, query]) -> ['*', query];
shown(Name) -> Name.

labels([phoenix, endpoint, stop], #{conn := #{status := Status, method := Method}}) ->
    [text(Method), text(Status)];
labels([phoenix, router_dispatch, stop], #{route := Route} = M) ->
    case map_size(M) of
        Size when Size > 32 -> ["-", "-", "-"];
        _ -> [text(Route), text(maps:get(plug, M)), text(maps:get(plug_opts, M))]
    end;
labels([phoenix, router_dispatch, exception], #{route := Route, plug := Plug, reason := Reason}) ->
    [text(Route), text(Plug), text(class(Reason))];
labels([phoenix, live_view, handle_event, stop], #{socket := #{view := View}, event := Event}) ->
    [text(View), text(Event)];
labels([shop, _, query], #{repo := Repo, source := Source, result := Result}) ->
    [text(Repo), text(Source), command_of(Result), text(element(1, Result))];
labels([oban, job, stop], #{job := #{worker := Worker, queue := Queue}, state := State}) ->
    [text(Worker), text(Queue), text(State)];
labels(_, _) -> [].

command_of({ok, #{command := Command}}) -> text(Command);
command_of(_) -> "-".

class(#{'__struct__' := 'Elixir.Plug.Conn.WrapperError', reason := Reason}) -> class(Reason);
class(#{'__struct__' := Name}) -> Name;
class(Reason) when is_tuple(Reason) -> element(1, Reason);
class(Reason) -> Reason.

text(Text) when is_binary(Text), byte_size(Text) > 64 -> [binary:part(Text, 0, 64), "..."];
text(Text) when is_binary(Text) -> Text;
text(Number) when is_integer(Number) -> integer_to_list(Number);
text(Atom) ->
    case atom_to_list(Atom) of
        "Elixir." ++ Module -> Module;
        Other -> Other
    end.

hostile(Rounds) ->
    Names = [[1, 2], [shop | cart], [a, b, c, d, e, f, g, h, i], [shop, "text"]],
    [catch telemetry:execute(Name, #{duration => 1}, #{}) || Name <- Names],
    Huge = maps:from_list([{N, N} || N <- lists:seq(1, 10000)]),
    dispatch(<<"/huge">>, Huge, 5),
    telemetry:execute([shop, hostile], Huge#{duration => 5}, #{}),
    run([shop, hostile], 1 bsl 70, #{}),
    run([shop, hostile], 1.5, #{}),
    run([shop, hostile], -5, #{}),
    dispatch(binary:copy(<<"/megabytes">>, 300000), #{}, 5),
    dispatch(<<"\e[2J\r\n">>, #{}, 5),
    %% A short one would be copied, and begin with a byte.
    <<_:3, Bits:800/bitstring, _/bitstring>> = binary:copy(<<"/unaligned">>, Rounds + 20),
    dispatch(Bits, #{}, 5),
    [dispatch(Route, #{}, 5) || Route <- [1.5, self(), make_ref(), {a}, "list", [], 1 bsl 70]].
